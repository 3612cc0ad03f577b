"""turnstile/names.py: lookup, making, removing, renaming, linking, and where links lead."""

import msgspec
import pytest
from harness.sansio import CALLER, DIRECTORY, EVERYTHING, FIFO, LINK, REGULAR, ROOT, Errno, Mount, Tree, attributes

from fuse_gated import operations as op
from fuse_gated.errors import errno_name
from fuse_gated.gate.verdict import ALL, DELETE, READ, WRITE, Rule
from fuse_gated.paths import NAME_MAX
from fuse_gated.turnstile.naming import MAX_PATH
from fuse_gated.wire import messages
from fuse_gated.wire.messages import Owner


def failed(answer):
    assert isinstance(answer, op.Failed), answer
    return errno_name(answer.errno)


BY_NAME = {
    "lookup": lambda name: op.Lookup(ROOT, name),
    "symlink": lambda name: op.Symlink(ROOT, name, b"t"),
    "mknod": lambda name: op.Mknod(ROOT, name, FIFO, 0, 0),
    "mkdir": lambda name: op.Mkdir(ROOT, name, 0, 0),
    "unlink": lambda name: op.Unlink(ROOT, name),
    "rmdir": lambda name: op.Rmdir(ROOT, name),
    "rename": lambda name: op.Rename(ROOT, name, ROOT, b"x", 0),
    "rename to": lambda name: op.Rename(ROOT, b"x", ROOT, name, 0),
    "link": lambda name: op.Link(ROOT, ROOT, name),
    "create": lambda name: op.Create(ROOT, name, 0, 0, 0),
}


@pytest.mark.parametrize("request_", BY_NAME.values(), ids=BY_NAME)
@pytest.mark.parametrize(
    ("name", "errno"),
    [(b"", "EINVAL"), (b".", "EINVAL"), (b"..", "EINVAL"), (b"a/b", "EINVAL"), (b"a\0", "EINVAL"), (b"n" * 256, "ENAMETOOLONG")],
)
def test_what_is_no_name_is_never_sent(request_, name, errno):
    mount = Mount()
    assert failed(mount.do(request_(name))) == errno
    assert mount.sent == []


@pytest.mark.parametrize("request_", BY_NAME.values(), ids=BY_NAME)
@pytest.mark.parametrize("parent", [77, 10**9])
def test_a_directory_that_was_never_given_out_is_stale(request_, parent):
    mount = Mount()
    request = request_(b"name")
    if isinstance(request, op.Link):
        request = op.Link(ROOT, parent, b"name")
    else:
        values = {field: getattr(request, field) for field in request.__struct_fields__}
        request = type(request)(**{**values, "parent": parent})
    assert failed(mount.do(request)) == "ESTALE"
    assert mount.sent == []


def test_a_name_of_any_bytes_is_looked_up_as_it_is():
    mount = Mount()
    name = b"\xff" * NAME_MAX
    mount.lookup(name)
    assert mount.arguments == messages.Getattr(name)


def test_a_path_longer_than_any_message_could_carry_is_refused():
    mount = Mount()
    node = ROOT
    for number in range(MAX_PATH // (NAME_MAX + 1) - 1):
        node = mount.t.inodes.known(mount.t.inodes.get(node), b"d" * NAME_MAX, attributes(100 + number, DIRECTORY)).id
    deepest = mount.t.inodes.path(mount.t.inodes.get(node))
    assert len(deepest) < MAX_PATH
    last = mount.do(op.Lookup(node, b"n" * NAME_MAX), attributes(9, DIRECTORY))
    assert len(mount.arguments.target) == MAX_PATH - 1
    mount.clear()
    assert failed(mount.do(op.Lookup(last.node, b"n"))) == "ENAMETOOLONG"
    moved = mount.t.inodes.get(last.node)
    moved.name += b"n" * 10
    mount.t.inodes.renamed(moved.parent, b"n" * NAME_MAX, moved.parent, moved.name, exchange=False)
    assert failed(mount.do(op.Getattr(last.node))) == failed(mount.do(op.Opendir(last.node, 0))) == "ENAMETOOLONG"
    assert mount.sent == []


# Lookup.


def test_a_name_becomes_a_node_with_its_attributes_as_they_are_shown():
    mount = Mount()
    entry = mount.do(op.Lookup(ROOT, b"f"), attributes(21, mode=REGULAR | 0o755))
    assert entry.node == 2
    assert (entry.attributes.inode, entry.attributes.mode) == (21, REGULAR | 0o755)
    assert (entry.entry_valid, entry.attributes_valid) == (0.0, 0.001)


def test_the_same_name_of_the_same_file_is_the_same_node_and_another_file_another():
    mount = Mount()
    first = mount.lookup(b"f", inode=21)
    assert mount.lookup(b"f", inode=21) == first
    assert mount.t.inodes.get(first).lookups == 2
    assert mount.lookup(b"f", inode=22) != first


def test_two_names_of_one_file_are_two_nodes_that_show_one_number():
    mount = Mount()
    one = mount.do(op.Lookup(ROOT, b"a"), attributes(21, nlink=2))
    two = mount.do(op.Lookup(ROOT, b"b"), attributes(21, nlink=2))
    assert one.node != two.node
    assert one.attributes.inode == two.attributes.inode == 21


def test_attributes_of_an_open_file_are_not_remembered():
    mount = Mount()
    node = mount.lookup(b"f", inode=21)
    mount.open(node)
    assert mount.do(op.Lookup(ROOT, b"f"), attributes(21)).attributes_valid == 0.0


def test_a_name_that_is_not_there_loses_its_node():
    mount = Mount()
    node = mount.lookup(b"f")
    assert failed(mount.do(op.Lookup(ROOT, b"f"), Errno("ENOENT"))) == "ENOENT"
    assert mount.t.inodes.gone(mount.t.inodes.get(node)) == "ENOENT"


def test_another_failure_takes_no_name_away():
    mount = Mount()
    node = mount.lookup(b"f")
    assert failed(mount.do(op.Lookup(ROOT, b"f"), Errno("EIO"))) == "EIO"
    assert not mount.t.inodes.gone(mount.t.inodes.get(node))
    assert failed(mount.do(op.Lookup(ROOT, b"missing"), Errno("ENOENT"))) == "ENOENT"


def test_a_reply_that_a_rename_has_overtaken_does_not_take_the_new_file_away():
    mount = Mount()
    new, _ = mount.lookup(b"new", inode=22), mount.lookup(b"f", inode=21)
    lookup = mount.ask(op.Lookup(ROOT, b"f"))
    mount.do(op.Rename(ROOT, b"new", ROOT, b"f", 0), None)
    mount.reply(lookup, attributes(21))
    assert mount.answers(lookup) == [], "it is looked up once more"
    mount.reply(lookup, attributes(22))
    entry = mount.answer(lookup)
    assert isinstance(entry, op.Entry)
    assert entry.node == new
    assert mount.t.inodes.path(mount.t.inodes.get(new)) == b"f"
    assert not mount.t.inodes.gone(mount.t.inodes.get(new))


def test_a_reply_of_nothing_that_a_create_has_overtaken_does_not_take_the_new_file_away():
    mount = Mount()
    lookup = mount.ask(op.Lookup(ROOT, b"f"))
    made = mount.do(op.Mkdir(ROOT, b"f", 0o755, 0), attributes(30, DIRECTORY))
    mount.reply(lookup, Errno("ENOENT"))
    assert not mount.t.inodes.gone(mount.t.inodes.get(made.node))


def test_two_lookups_of_one_name_at_once_find_one_node():
    mount = Mount()
    one, two = mount.ask(op.Lookup(ROOT, b"f")), mount.ask(op.Lookup(ROOT, b"f"))
    mount.reply(one, attributes(21))
    mount.reply(two, attributes(21))
    assert mount.answer(one).node == mount.answer(two).node


def test_the_ancestors_of_what_is_visible_can_be_walked():
    mount = Mount([Rule("/a/b/c", allow=READ)])
    node = mount.lookup(b"a/b/c")
    assert mount.t.inodes.path(mount.t.inodes.get(node)) == b"a/b/c"
    assert failed(mount.do(op.Lookup(ROOT, b"other"))) == "EACCES"


def test_a_driver_without_nodes_gets_the_attributes_alone():
    mount = Mount()
    entry = mount.do(op.Lookup(b"d", b"f"), attributes(21))
    assert (entry.node, entry.attributes.inode) == (ROOT, 21)
    assert failed(mount.do(op.Lookup(b"d", b"f"), Errno("ENOENT"))) == "ENOENT"


# Links.


LEADS = [
    (b"f", b"f"),
    (b"d/f", b"d/f"),
    (b"../f", None),
    (b"d/../../f", None),
    (b"/etc/passwd", None),
    (b"/home/me/src/f", b"f"),
    (b"/home/me/srcs/f", None),
    (b"", None),
    (b"a\0b", None),
]


@pytest.mark.parametrize(("target", "shown"), LEADS)
def test_a_link_shows_what_cannot_leave_the_export(target, shown):
    mount = Mount()
    link = mount.lookup(b"l", LINK)
    mount.clear()
    answer = mount.do(op.Readlink(link), target)
    if shown is not None:
        assert answer == op.Data(shown)
    else:
        assert failed(answer) == "EACCES"
        (record,) = mount.records
        assert (record.kind, record.rule, record.path, record.errno) == ("refused", "symlinks", b"l", "EACCES")


def test_the_policy_may_show_links_as_they_are_or_not_at_all():
    assert Mount(symlinks="as-is").do(op.Readlink(b"l"), b"/etc/passwd") == op.Data(b"/etc/passwd")
    assert failed(Mount(symlinks="deny").do(op.Readlink(b"l"), b"f")) == "EACCES"


def test_a_link_that_was_moved_meanwhile_is_read_again_because_inside_depends_on_its_depth():
    mount = Mount()
    link = mount.lookup(b"d/l", LINK)
    parent = mount.t.inodes.get(link).parent.id
    number = mount.ask(op.Readlink(link))
    mount.do(op.Rename(parent, b"l", ROOT, b"l", 0), None)
    mount.reply(number, b"../f")
    assert failed(mount.answer(number)) == "ESTALE"
    assert failed(mount.do(op.Readlink(link), b"../f")) == "EACCES"


def test_a_link_is_made_with_any_target_that_there_can_be():
    mount = Mount()
    mount.do(op.Symlink(ROOT, b"l", b"../\xff"), attributes(30, LINK))
    assert mount.arguments == messages.Symlink(b"l", b"../\xff", None)
    assert failed(mount.do(op.Symlink(ROOT, b"l", b""))) == "ENOENT"
    assert failed(mount.do(op.Symlink(ROOT, b"l", b"t" * 4096))) == "ENAMETOOLONG"
    assert isinstance(mount.do(op.Symlink(ROOT, b"long", b"t" * 4095), attributes(31, LINK)), op.Entry)


# Making and removing.


def test_what_is_made_belongs_to_the_clients_user_or_is_passed_through():
    mount = Mount()
    mount.do(op.Mkdir(ROOT, b"d", 0o41755, 0o22), attributes(30, DIRECTORY))
    assert mount.arguments == messages.Mkdir(b"d", 0o1755, None)
    passing = Mount(ownership="passthrough")
    passing.do(op.Mknod(ROOT, b"p", FIFO | 0o644, 5, 0o22), attributes(31, FIFO))
    assert passing.arguments == messages.Mknod(b"p", FIFO | 0o644, 5, Owner(CALLER.uid, CALLER.gid))


def test_what_is_made_in_a_directory_needs_write_in_it():
    mount = Mount([Rule("/d", deny=WRITE), *EVERYTHING])
    directory = mount.lookup(b"d", DIRECTORY)
    assert failed(mount.do(op.Mkdir(directory, b"x", 0o755, 0))) == "EACCES"


def test_making_what_hide_matches_is_refused_whether_it_is_there_or_not():
    mount = Mount([Rule("/.env*", hide=True), *EVERYTHING])
    for name in (b".env", b".envx"):
        assert failed(mount.do(op.Mkdir(ROOT, name, 0o755, 0))) == "EACCES"
        assert failed(mount.do(op.Unlink(ROOT, name))) == "ENOENT"
    assert mount.sent == []


@pytest.mark.parametrize(("remove", "kind"), [(op.Unlink, REGULAR), (op.Rmdir, DIRECTORY)])
def test_what_was_removed_has_lost_its_name(remove, kind):
    mount = Mount()
    node = mount.lookup(b"d/x", kind)
    parent = mount.t.inodes.get(node).parent
    mount.do(remove(parent.id, b"x"), None)
    assert mount.t.inodes.gone(mount.t.inodes.get(node)) == "ENOENT"
    assert failed(mount.do(op.Getattr(node))) == "ENOENT"


def test_what_could_not_be_removed_keeps_its_name():
    mount = Mount()
    node = mount.lookup(b"f")
    mount.do(op.Unlink(ROOT, b"f"), Errno("EPERM"))
    assert not mount.t.inodes.gone(mount.t.inodes.get(node))
    assert failed(mount.do(op.Unlink(ROOT, b"unknown"), Errno("ENOENT"))) == "ENOENT"
    assert mount.do(op.Unlink(ROOT, b"unknown"), None) == op.Done()


def test_the_other_names_of_a_removed_file_are_looked_at_again_before_the_answer():
    mount = Mount()
    _, other = mount.lookup(b"a", inode=21, nlink=2), mount.lookup(b"b", inode=21, nlink=2)
    mount.clear()
    mount.do(op.Unlink(ROOT, b"a"), None)
    assert mount.story == ["tell operation unlink /a", "send unlink", f"forget attributes of {other}", "answer Done"]


# Renaming.


def rename(mount, old, new, flags=0, *results):
    return mount.do(op.Rename(ROOT, old, ROOT, new, flags), *results)


@pytest.mark.parametrize("flags", [3, 4, 8, 2**31])
def test_flags_that_make_no_sense_are_refused(flags):
    assert failed(rename(Mount(), b"a", b"b", flags)) == "EINVAL"


@pytest.mark.parametrize(("flags", "no_replace", "exchange"), [(0, False, False), (1, True, False), (2, False, True)])
def test_flags_reach_the_client(flags, no_replace, exchange):
    mount = Mount()
    for name in (b"a", b"b"):
        mount.lookup(name)
    rename(mount, b"a", b"b", flags, None)
    assert mount.arguments == messages.Rename(b"a", b"b", no_replace, exchange)


def test_a_renamed_node_is_where_it_went_and_what_it_replaced_is_gone():
    mount = Mount()
    a, b = mount.lookup(b"a"), mount.lookup(b"b")
    mount.clear()
    rename(mount, b"a", b"b", 0, None)
    assert mount.t.inodes.path(mount.t.inodes.get(a)) == b"b"
    assert mount.t.inodes.gone(mount.t.inodes.get(b))
    assert (mount.records[0].path, mount.records[0].new_path) == (b"a", b"b")


def test_exchanged_nodes_change_places():
    mount = Mount()
    a, b = mount.lookup(b"a"), mount.lookup(b"b", DIRECTORY)
    rename(mount, b"a", b"b", 2, None)
    assert [mount.t.inodes.path(mount.t.inodes.get(node)) for node in (a, b)] == [b"b", b"a"]


def test_a_rename_that_failed_moves_nothing():
    mount = Mount()
    a = mount.lookup(b"a")
    assert failed(rename(mount, b"a", b"b", 1, Errno("EEXIST"))) == "EEXIST"
    assert mount.t.inodes.path(mount.t.inodes.get(a)) == b"a"


def test_the_other_names_of_a_replaced_file_are_looked_at_again():
    mount = Mount()
    mount.lookup(b"a")
    mount.lookup(b"b", inode=21, nlink=2)
    other = mount.lookup(b"c", inode=21, nlink=2)
    mount.clear()
    rename(mount, b"a", b"b", 0, None)
    assert mount.story[1:] == ["send rename", f"forget attributes of {other}", "answer Done"]


def test_a_directory_does_not_move_to_where_it_would_be_allowed_more():
    mount = Mount([Rule("/secret/**", deny=WRITE), *EVERYTHING])
    mount.lookup(b"secret", DIRECTORY)
    assert failed(rename(mount, b"secret", b"open")) == "EXDEV"
    assert mount.records[-1].kind == "refused"
    assert mount.sent[-1].operation == "getattr", "the client was not asked to"


def test_what_is_not_known_is_judged_as_a_directory():
    """A file may move to where a directory may not, because nothing lies beneath it."""
    rules = [Rule("/f/x", deny=ALL), *EVERYTHING]
    known, unknown = Mount(rules), Mount(rules)
    known.lookup(b"f", REGULAR)
    assert rename(known, b"f", b"g", 0, None) == op.Done()
    assert failed(rename(unknown, b"f", b"g")) == "EXDEV"


def test_what_may_not_be_removed_is_not_replaced_even_if_the_kernel_does_not_know_of_it():
    rules = [Rule("/b", deny=DELETE), *EVERYTHING]
    mount = Mount(rules)
    mount.lookup(b"a")
    mount.clear()
    assert failed(rename(mount, b"a", b"b", 0, Errno("EEXIST"))) == "EACCES"
    assert mount.arguments == messages.Rename(b"a", b"b", True, False)
    assert mount.story == [
        "tell operation rename /a", "send rename", "tell refused rename /a EACCES", "answer EACCES",
    ]  # fmt: skip
    mount.lookup(b"b")
    mount.clear()
    assert failed(rename(mount, b"a", b"b")) == "EACCES"
    assert mount.sent == [], "what is known to be there is not even tried"
    assert rename(mount, b"a", b"c", 0, None) == op.Done()


def test_any_other_failure_of_a_guarded_rename_is_the_callers():
    mount = Mount([Rule("/b", deny=DELETE), *EVERYTHING])
    mount.lookup(b"a")
    assert failed(rename(mount, b"a", b"b", 0, Errno("ENOSPC"))) == "ENOSPC"
    assert rename(mount, b"a", b"b", 0, None) == op.Done()


def test_without_nodes_what_is_open_follows_its_name():
    mount = Mount()
    handle = mount.do(op.Open(b"d/f", 2), messages.OpenedFile(77, attributes(21))).handle
    mount.do(op.Lookup(b"", b"d"), attributes(5, DIRECTORY))
    mount.do(op.Rename(b"", b"d", b"", b"e", 0), None)
    assert mount.t.handles.path(mount.t.handles.get(handle)) == b"e/f"


# Hard links.


def test_a_link_is_a_node_of_its_own_and_the_names_know_each_other():
    mount = Mount()
    node = mount.lookup(b"a", inode=21)
    mount.clear()
    entry = mount.do(op.Link(node, ROOT, b"b"), attributes(21, nlink=2))
    assert entry.node != node
    assert mount.arguments == messages.Link(b"a", b"b")
    assert mount.t.inodes.siblings(mount.t.inodes.get(node)) == [entry.node]
    assert f"forget attributes of {node}" in mount.story
    assert mount.story[-1] == "answer Entry"


def test_an_open_file_is_linked_by_its_handle():
    mount = Mount()
    node = mount.lookup(b"a", inode=21)
    mount.open(node, remote=77)
    mount.do(op.Link(node, ROOT, b"b"), attributes(21, nlink=2))
    assert mount.arguments == messages.Link(77, b"b")


def test_a_file_that_has_lost_its_name_gets_none():
    mount = Mount()
    node = mount.lookup(b"a", inode=21)
    mount.open(node)
    mount.do(op.Unlink(ROOT, b"a"), None)
    mount.clear()
    assert failed(mount.do(op.Link(node, ROOT, b"b"))) == "ENOENT"
    assert mount.log[:-1] == []


def test_a_link_grants_nothing_that_the_old_name_denies():
    mount = Mount([Rule("/secret", deny=WRITE), *EVERYTHING])
    node = mount.lookup(b"secret")
    assert failed(mount.do(op.Link(node, ROOT, b"open"))) == "EXDEV"
    assert (mount.records[-1].path, mount.records[-1].new_path) == (b"secret", b"open")


class Linked(Tree):
    """`a` and `b` are one file, `c` is another."""

    def attributes(self, path):
        found = super().attributes(path)
        if found is None or path not in (b"a", b"b"):
            return found
        return msgspec.structs.replace(found, inode=77, nlink=2)


@pytest.mark.parametrize(("name", "new_name", "asked"), [(b"a", b"b", True), (b"a", b"c", True), (b"c", b"a", False)])
def test_a_name_that_may_still_be_there_is_asked_for(name, new_name, asked):
    """Of two names of one file both stay (rename(2)); and which of its names a file has lost only the client knows."""
    mount, tree = Mount(watches=True), Linked({b"a": b"x", b"b": b"x", b"c": b"y"})
    mount.known(tree)
    for each in (b"a", b"b", b"c"):
        mount.see(tree, op.Lookup(ROOT, each))
    assert rename(mount, name, new_name, 0, None) == op.Done()
    mount.clear()
    number = mount.ask(op.Lookup(ROOT, name))
    assert bool(mount.sent) is asked
    if not asked:
        entry = mount.answer(number)
        assert isinstance(entry, op.Entry)
        assert entry.node == 0, "it is known to be gone"
