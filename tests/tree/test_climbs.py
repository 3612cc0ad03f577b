from harness.sansio import DIRECTORY, attributes

from fuse_gated.tree.inodes import Inodes, Node


def chain(inodes: Inodes, *names: bytes) -> list[Node]:
    made = [inodes.root]
    for number, name in enumerate(names):
        made.append(inodes.known(made[-1], name, attributes(10 + number, DIRECTORY)))
    return made


def test_what_is_above_a_link_knows_how_far_up_it_leads() -> None:
    inodes = Inodes()
    made = chain(inodes, b"a", b"b", b"c")
    inodes.climbed(made[3], 2)
    assert [node.climbs for node in made] == [0, 0, 1, 2]
    inodes.climbed(made[2], 2)
    inodes.climbed(made[3], 1)
    assert [node.climbs for node in made] == [0, 1, 2, 2]
    inodes.climbed(made[1], 9)
    assert [node.climbs for node in made] == [8, 9, 2, 2]


def test_a_directory_that_moves_tells_those_above_its_new_place() -> None:
    inodes = Inodes()
    root, a, b = chain(inodes, b"a", b"b")
    c = inodes.known(root, b"c", attributes(20, DIRECTORY))
    d = inodes.known(c, b"d", attributes(21, DIRECTORY))
    inodes.climbed(b, 2)
    inodes.renamed(a, b"b", d, b"b", exchange=False)
    assert (c.climbs, d.climbs, b.climbs) == (0, 1, 2)
