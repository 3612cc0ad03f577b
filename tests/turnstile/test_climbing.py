"""symlinks: inside, while directories move: no link that was shown leads above the export from where its directory is by then."""

from typing import Any

import pytest
from harness.sansio import DIRECTORY, LINK, Errno, Mount
from hypothesis import given
from hypothesis import strategies as st

from fuse_gated import operations as op
from fuse_gated.errors import errno_name
from fuse_gated.operations import ROOT


class Tree(Mount):
    """a/b/c/l is a link in a directory three levels deep; z is a directory beside a."""

    def __init__(self, **other: Any) -> None:
        super().__init__(**other)
        self.nodes = {b"": ROOT}
        for path in (b"a", b"a/b", b"a/b/c", b"z"):
            self.add(path, DIRECTORY)
        self.add(b"a/b/c/l", LINK)

    def add(self, path: bytes, kind: int) -> None:
        parent, _, name = path.rpartition(b"/")
        self.nodes[path] = self.lookup(name, kind, inode=len(self.nodes) + 50, parent=self.nodes[parent])

    def read(self, target: bytes, path: bytes = b"a/b/c/l") -> str:
        return outcome(self.do(op.Readlink(self.nodes[path]), target))

    def ask_rename(self, old: bytes, new: bytes, flags: int = 0) -> int:
        (parent, _, name), (new_parent, _, new_name) = old.rpartition(b"/"), new.rpartition(b"/")
        return self.ask(op.Rename(self.nodes[parent], name, self.nodes[new_parent], new_name, flags))

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> str:
        number = self.ask_rename(old, new, flags)
        if not self.answers(number):
            self.reply(number)
        return outcome(self.answer(number))


def outcome(answer: op.Answer) -> str:
    if isinstance(answer, op.Failed):
        return errno_name(answer.errno)
    return answer.data.decode() if isinstance(answer, op.Data) else "ok"


def test_a_directory_stays_as_deep_as_its_links_need():
    t = Tree()
    assert t.read(b"../../x") == "../../x"
    assert t.rename(b"a/b/c", b"c") == "EXDEV"
    assert t.records[-1].kind == "refused"
    assert (t.records[-1].rule, t.records[-1].new_path) == ("symlinks", b"c")
    assert t.rename(b"a/b", b"b") == "ok", "from here it leads to the root, and no further"
    t.nodes |= {b"b": t.nodes[b"a/b"], b"b/c": t.nodes[b"a/b/c"]}
    assert t.rename(b"b/c", b"c") == "EXDEV"


@pytest.mark.parametrize("target", [b"x", b"../x", b"."])
def test_what_leads_nowhere_near_the_root_moves_as_before(target: bytes):
    t = Tree()
    t.read(target)
    assert t.rename(b"a/b/c", b"c") == "ok"


def test_a_link_that_nobody_has_read_holds_nothing():
    assert Tree().rename(b"a/b/c", b"c") == "ok"


@pytest.mark.parametrize("mode", ["as-is", "deny"])
def test_only_inside_promises_anything(mode: str):
    t = Tree(symlinks=mode)
    t.read(b"../../../x")
    assert t.rename(b"a/b/c", b"c") == "ok"


def test_an_absolute_target_is_as_deep_as_it_was_shown():
    t = Tree(export_root=b"/home/me/src")
    assert t.read(b"/home/me/src/x") == "../../../x"
    assert t.rename(b"a/b/c", b"a/c") == "EXDEV"
    assert t.rename(b"a/b/c", b"z/c") == "EXDEV"
    t.add(b"z/y", DIRECTORY)
    assert t.rename(b"a/b/c", b"z/y/c") == "ok"


def test_an_exchange_moves_both():
    t = Tree()
    t.read(b"../../../x")
    assert t.rename(b"z", b"a/b/c", 2) == "EXDEV"
    assert t.rename(b"a/b/c", b"z", 2) == "EXDEV"
    t = Tree()
    assert t.rename(b"z", b"a/b/c", 2) == "ok"


def test_a_directory_that_came_from_elsewhere_brings_its_links_along():
    t = Tree()
    t.read(b"../../../x")
    t.add(b"z/y", DIRECTORY)
    assert t.rename(b"a/b/c", b"z/y/c") == "ok"
    assert t.rename(b"z/y", b"y") == "EXDEV"
    t.add(b"a/n", DIRECTORY)
    assert t.rename(b"z/y", b"a/n", 2) == "ok", "as deep as before"
    t.nodes[b"a/n"] = t.nodes[b"z/y"]
    assert t.rename(b"a/n", b"n") == "EXDEV"


# While a directory is being moved.


@pytest.mark.parametrize(("old", "new"), [(b"a/b/c", b"c"), (b"a/b", b"b"), (b"a/b/c", b"z/c")])
def test_a_link_beneath_what_is_being_moved_is_judged_by_both_places(old: bytes, new: bytes):
    """The client holds back its answer to the rename, and sends it after the link: what is shown would be walked from there."""
    t = Tree()
    number = t.ask_rename(old, new)
    assert t.read(b"../../../x") == "EACCES"
    assert t.records[-1].rule == "symlinks"
    assert t.read(b"x") == "x"
    t.reply(number)
    assert outcome(t.answer(number)) == "ok"


def test_an_exchange_that_is_under_way_has_two_places():
    t = Tree()
    t.ask_rename(b"z", b"a/b/c", 2)
    assert t.read(b"../../../x") == "EACCES"


def test_a_move_that_is_over_is_forgotten():
    t = Tree()
    number = t.ask_rename(b"a/b/c", b"c")
    t.reply(number, Errno("EIO"))
    assert t.read(b"../../../x") == "../../../x"
    for name in (b"m", b"n"):
        t.rename(b"z", name)
        t.rename(name, b"z")
    assert len(t.t.moves) == 1


# Until the kernel has moved it too.


def deeper() -> Tree:
    """a/b/c has just been moved to z/y/x/w/c: the kernel has the answer, and may not have acted on it."""
    t = Tree()
    for path in (b"z/y", b"z/y/x", b"z/y/x/w"):
        t.add(path, DIRECTORY)
    assert t.rename(b"a/b/c", b"z/y/x/w/c") == "ok"
    return t


@pytest.mark.parametrize("request_", ["Create", "Mkdir", "Mknod", "Symlink", "Unlink", "Rmdir", "Link", "Rename", "Readdir"])
@pytest.mark.parametrize("where", [b"a/b", b"z/y/x/w"])
def test_after_a_move_a_link_is_judged_by_the_old_place_too_until_the_kernel_shows_that_it_has_moved(request_: str, where: bytes):
    """'..' leads from the old place until the caller of rename(2) gets to run, and a request that is sent under a lock which
    his rename held shows that he has."""
    t = deeper()
    assert t.read(b"../../../../x") == "EACCES"
    assert t.records[-1].rule == "symlinks"
    assert t.read(b"../../../x") == "../../../x", "inside from either place"
    at = t.nodes[where]
    t.ask(op.Lookup(at, b"c"))
    t.ask(op.Getattr(at, None))
    t.ask(op.Rename(ROOT, b"z", ROOT, b"other", 0))
    t.ask(op.Mkdir(ROOT, b"new", 0o755, 0))
    assert t.read(b"../../../../x") == "EACCES", "these take no lock of either directory"
    requests: dict[str, op.Request] = {
        "Create": op.Create(at, b"n", 1, 0o644, 0),
        "Mkdir": op.Mkdir(at, b"n", 0o755, 0),
        "Mknod": op.Mknod(at, b"n", 0o100644, 0, 0),
        "Symlink": op.Symlink(at, b"n", b"x"),
        "Unlink": op.Unlink(at, b"n"),
        "Rmdir": op.Rmdir(at, b"n"),
        "Link": op.Link(t.nodes[b"a/b/c/l"], at, b"n"),
        "Rename": op.Rename(at, b"n", at, b"m", 0),
        "Readdir": op.Readdir(at, 1, 0, 4096, True),
    }
    t.ask(requests[request_])
    assert t.read(b"../../../../x") == "../../../../x"


def test_after_an_exchange_both_are_judged_by_their_old_places():
    t = Tree()
    t.add(b"z/l", LINK)
    assert t.rename(b"z", b"a/b/c", 2) == "ok"
    assert t.read(b"../../x", b"z/l") == "EACCES"
    t.ask(op.Mkdir(t.nodes[b"a/b"], b"new", 0o755, 0))
    assert t.read(b"../../x", b"z/l") == "../../x"


def test_a_name_that_became_another_directory_still_moves_no_higher_than_links_allow():
    """The kernel may hold the old one, in which somebody was told a link, until it looks the name up again."""
    t = Tree()
    assert t.read(b"../../../x") == "../../../x"
    t.nodes[b"a/b/c"] = t.lookup(b"c", DIRECTORY, inode=999, parent=t.nodes[b"a/b"])
    assert t.rename(b"a/b/c", b"c") == "EXDEV"


@pytest.mark.parametrize(("old", "new", "flags"), [(b"a/b/c", b"c", 0), (b"a/b/c", b"z", 2), (b"z", b"a/b/c", 2)])
def test_what_the_client_said_is_gone_is_looked_up_again_before_it_is_moved(old: bytes, new: bytes, flags: int):
    t = Tree()
    assert t.read(b"../../../x") == "../../../x"
    assert outcome(t.do(op.Lookup(t.nodes[b"a/b"], b"c"), Errno("ENOENT"))) == "ENOENT"
    assert t.rename(old, new, flags) == "ESTALE"


def test_where_nodes_are_paths_nothing_is_remembered():
    """libfuse moves nodes as it likes."""
    t = Mount()
    assert outcome(t.do(op.Readlink(b"a/b/c/l"), b"../../../x")) == "../../../x"
    number = t.ask(op.Rename(b"a/b", b"c", b"", b"c", 0))
    t.reply(number)
    assert outcome(t.answer(number)) == "ok"


# Whatever is done.


steps = st.lists(
    st.tuples(st.sampled_from(["link", "move", "move"]), st.integers(0, 7), st.integers(0, 7)), min_size=4, max_size=30
)


@given(steps)
def test_no_way_that_was_shown_ever_leads_out(wanted: list[tuple[str, int, int]]):
    """A program that has been told a link may go on from its directory at any time later."""
    t = Mount()
    directories = [t.t.inodes.root]
    for number, above in enumerate((0, 1, 2, 3, 0, 5, 6)):
        made = t.lookup(b"%d" % number, DIRECTORY, inode=100 + number, parent=directories[above].id)
        directories.append(t.t.inodes.get(made))
    shown: list[tuple[Any, int]] = []
    for what, number, other in wanted:
        directory, target = directories[number], directories[other]
        if what == "link":
            link = t.lookup(b"l", LINK, inode=200 + number, parent=directory.id)
            if outcome(t.do(op.Readlink(link), b"../" * (other % 5) + b"x")) != "EACCES":
                shown.append((directory, other % 5))
        elif number and not is_beneath(target, directory):
            asked = t.ask(op.Rename(directory.parent.id, directory.name, target.id, directory.name, 0))
            if not t.answers(asked):
                t.reply(asked)
        for at, levels in shown:
            assert levels <= depth(at)


def is_beneath(node: Any, other: Any) -> bool:
    return node is other or (node.parent is not None and is_beneath(node.parent, other))


def depth(node: Any) -> int:
    return 0 if node.parent is None else 1 + depth(node.parent)
