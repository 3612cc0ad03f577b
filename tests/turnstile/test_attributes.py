"""turnstile/attributes.py: what is shown of a file, and changes of it."""

import pytest
from harness.sansio import DIRECTORY, EVERYTHING, LINK, REGULAR, ROOT, Errno, Mount, attributes

from fuse_gated import operations as op
from fuse_gated.errors import errno_name
from fuse_gated.gate.tenant import Identity, Limits
from fuse_gated.gate.verdict import EXECUTE, READ, WRITE, Rule
from fuse_gated.wire import messages


def failed(answer):
    assert isinstance(answer, op.Failed), answer
    return errno_name(answer.errno)


# What is shown.


def test_everything_is_shown_as_owned_by_the_first_user_and_group():
    mount = Mount()
    found = mount.do(op.Getattr(ROOT), attributes(1, DIRECTORY, uid=0, gid=0)).attributes
    assert (found.uid, found.gid) == (1000, 1001)


def test_the_clients_own_ids_are_passed_through_where_the_policy_says_so():
    mount = Mount(ownership="passthrough")
    found = mount.do(op.Getattr(ROOT), attributes(1, DIRECTORY, uid=5, gid=6)).attributes
    assert (found.uid, found.gid) == (5, 6)


def test_everything_else_is_shown_as_it_is():
    mount = Mount()
    node = mount.lookup(b"f", inode=21)
    theirs = attributes(21, nlink=3, size=2**40, blocks=9, block_size=65536, atime=-5, mtime=2**62, ctime=7, rdev=0x801)
    answer = mount.do(op.Getattr(node), theirs)
    assert answer.valid == 0.0
    found = answer.attributes
    assert found == op.Attributes(7, 21, REGULAR | 0o644, 3, 1000, 1001, 0x801, 2**40, 9, 65536, -5, 2**62, 7)


def test_what_may_not_be_executed_shows_no_x_bits():
    mount = Mount([Rule("/bin/**", allow=READ | EXECUTE), Rule("/**", allow=READ)])
    for path, shown in ((b"bin/tool", 0o755), (b"script", 0o644)):
        node = mount.lookup(path)
        found = mount.do(op.Getattr(node), attributes(mount.t.inodes.get(node).identity[1], mode=REGULAR | 0o755)).attributes
        assert found.mode == REGULAR | shown


def test_numbers_of_another_filesystem_are_kept_apart():
    mount = Mount()
    here, there = (mount.do(op.Lookup(ROOT, name), attributes(21, device=device)) for name, device in ((b"a", 7), (b"b", 8)))
    assert here.attributes.inode == 21
    assert 0 <= there.attributes.inode < 2**64
    assert there.attributes.inode != 21
    again = mount.do(op.Getattr(there.node), attributes(21, device=8))
    assert again.attributes.inode == there.attributes.inode, "it is always the same"


def test_until_the_root_is_known_numbers_are_as_they_are():
    mount = Mount()
    mount.t.inodes.root.identity = None
    assert mount.do(op.Lookup(ROOT, b"a"), attributes(21, device=8)).attributes.inode == 21
    assert mount.do(op.Getattr(ROOT), attributes(1, DIRECTORY)).attributes.inode == 1
    assert mount.t.inodes.root.identity == (7, 1, DIRECTORY)


# getattr.


def test_attributes_are_asked_by_path_and_of_what_is_open_by_handle():
    mount = Mount()
    node = mount.lookup(b"d/f", inode=21)
    mount.do(op.Getattr(node), attributes(21))
    assert mount.arguments == messages.Getattr(b"d/f")
    handle = mount.open(node, remote=77)
    mount.do(op.Getattr(node), attributes(21))
    assert mount.arguments == messages.Getattr(77)
    mount.do(op.Getattr(node, handle), attributes(21))
    assert mount.arguments == messages.Getattr(77)
    mount.do(op.Getattr(node, 999), attributes(21))
    assert mount.arguments == messages.Getattr(77), "a handle that is not known is no fault where there is a node"


def test_without_nodes_a_handle_that_is_not_known_is_a_fault():
    mount = Mount()
    assert failed(mount.do(op.Getattr(b"f", 999))) == "EBADF"
    assert failed(mount.do(op.Setattr(b"f", 999, size=1))) == "EBADF"
    assert mount.sent == []


@pytest.mark.parametrize("changed", [{"inode": 22}, {"device": 8}, {"mode": LINK | 0o777}])
def test_another_file_at_the_same_path_is_stale(changed):
    mount = Mount()
    node = mount.lookup(b"f", inode=21)
    assert failed(mount.do(op.Getattr(node), attributes(**{"inode": 21, **changed}))) == "ESTALE"
    assert failed(mount.do(op.Setattr(node, mode=0o600), attributes(**{"inode": 21, **changed}))) == "ESTALE"


def test_a_node_that_was_never_given_out_is_stale():
    assert failed(Mount().do(op.Getattr(77))) == "ESTALE"


def test_what_has_lost_its_name_is_asked_by_its_handle_and_else_is_gone():
    mount = Mount()
    node = mount.lookup(b"f", inode=21)
    handle = mount.open(node, remote=77)
    mount.do(op.Unlink(ROOT, b"f"), None)
    assert mount.do(op.Getattr(node), attributes(21, nlink=0)).attributes.nlink == 0
    assert mount.arguments == messages.Getattr(77)
    mount.do(op.Release(node, handle))
    assert failed(mount.do(op.Getattr(node))) == "ENOENT"


def test_what_another_file_has_replaced_is_to_be_looked_up_again():
    mount = Mount()
    old, _ = mount.lookup(b"f", inode=21), mount.lookup(b"f", inode=22)
    assert failed(mount.do(op.Getattr(old))) == "ESTALE"


# setattr.


def test_changes_reach_the_client_and_what_is_none_stays():
    mount = Mount()
    node = mount.lookup(b"f", inode=21)
    mount.do(op.Setattr(node, mode=0o4755, atime=op.NOW, mtime=-5), attributes(21))
    assert mount.arguments == messages.Setattr(b"f", mode=0o4755, atime=-1, mtime=-5)
    mount.do(op.Setattr(node, size=3, kill_suidgid=True), attributes(21))
    assert mount.arguments == messages.Setattr(b"f", size=3, clear_setid=True)


def test_a_size_is_set_through_the_handle_that_was_opened_for_writing():
    mount = Mount()
    node = mount.lookup(b"f", inode=21)
    mount.open(node, 0, remote=70)
    writing = mount.open(node, 1, remote=71)
    mount.do(op.Setattr(node, size=3), attributes(21))
    assert mount.arguments == messages.Setattr(71, size=3)
    mount.do(op.Setattr(node, writing, size=3), attributes(21))
    assert mount.arguments == messages.Setattr(71, size=3)
    other = mount.open(node, 2, remote=72)
    mount.do(op.Setattr(node, other, size=3), attributes(21))
    assert mount.arguments == messages.Setattr(72, size=3), "the very handle, where it is named"
    mount.do(op.Setattr(node, writing, mode=0o600), attributes(21))
    assert mount.arguments == messages.Setattr(70, mode=0o600)


def test_only_a_chown_to_the_shown_owner_succeeds_where_ownership_is_mapped():
    mount = Mount()
    node = mount.lookup(b"f", inode=21)
    mount.do(op.Setattr(node, uid=1000, gid=1001), attributes(21))
    assert mount.arguments == messages.Setattr(b"f", clear_setid=True), "nothing is changed but setuid and setgid"
    mount.clear()
    for other in ({"uid": 1002}, {"gid": 1002}, {"uid": 1000, "gid": 0}):
        assert failed(mount.do(op.Setattr(node, **other))) == "EPERM"
    assert mount.sent == []
    assert [(record.kind, record.rule, record.errno) for record in mount.records] == [("refused", "ownership", "EPERM")] * 3


def test_any_chown_is_passed_through_where_ownership_is():
    mount = Mount(ownership="passthrough", identity=Identity(owner_uid=1000, owner_gid=1000, anyone=True))
    node = mount.lookup(b"f", inode=21)
    mount.do(op.Setattr(node, uid=5, gid=6), attributes(21))
    assert mount.arguments == messages.Setattr(b"f", uid=5, gid=6)


def test_no_file_grows_beyond_what_the_policy_allows():
    mount = Mount(limits=Limits(file_size=1000))
    node = mount.lookup(b"f", inode=21)
    mount.clear()
    assert failed(mount.do(op.Setattr(node, size=1001))) == "EFBIG"
    (record,) = mount.records
    assert (record.kind, record.errno, record.path) == ("limited", "EFBIG", b"f")
    assert "1001" in record.detail
    assert isinstance(mount.do(op.Setattr(node, size=1000), attributes(21)), op.Attr)


def test_other_names_of_a_changed_file_are_looked_at_again():
    mount = Mount()
    a, b = mount.lookup(b"a", inode=21, nlink=2), mount.lookup(b"b", inode=21, nlink=2)
    mount.clear()
    mount.do(op.Setattr(a, mode=0o600), attributes(21, nlink=2))
    assert mount.story[1:] == ["send setattr", f"forget attributes of {b}", "answer Attr"]
    mount.clear()
    mount.do(op.Setattr(a, size=0), attributes(21, nlink=2))
    assert mount.story[1:] == ["send setattr", f"forget attributes of {b}", f"forget {b}", "answer Attr"]


# access and statfs.


def test_access_is_judged_and_then_asked_of_the_client():
    mount = Mount([Rule("/d/**", allow=READ), Rule("/x", allow=READ | EXECUTE), Rule("/w", allow=READ | WRITE)])
    d, x, w = mount.lookup(b"d", DIRECTORY), mount.lookup(b"x"), mount.lookup(b"w")
    for node, mask, allowed in ((d, 5, True), (d, 2, False), (x, 5, True), (x, 2, False), (w, 6, True), (w, 1, False)):
        number = mount.ask(op.Access(node, mask))
        if allowed:
            assert mount.arguments.mask == mask
            mount.reply(number, Errno("EACCES"))
        assert failed(mount.answer(number)) == "EACCES"
    assert mount.t.statistics.denied == 3


def test_of_a_mask_only_what_there_is_reaches_the_client():
    mount = Mount()
    mount.do(op.Access(mount.lookup(b"f"), 0o777), None)
    assert mount.arguments == messages.Access(b"f", 7)


def test_of_what_is_not_known_access_is_judged_as_of_a_directory():
    mount = Mount([Rule("/**", allow=READ)])
    mount.t.inodes.root.identity = None
    assert mount.do(op.Access(ROOT, 1), None) == op.Done()


def test_the_size_of_the_filesystem_is_the_clients():
    space = op.Filesystem(1000, 500, 400, 100, 50, 4096, 255, 512)
    assert Mount([]).do(op.Statfs(ROOT), space) == space


# Extended attributes.


def test_only_the_users_own_namespace_is_served():
    mount = Mount()
    node = mount.lookup(b"f")
    mount.clear()
    for name in (b"security.capability", b"system.posix_acl_access", b"trusted.x", b"user", b"userx.a"):
        assert failed(mount.do(op.Getxattr(node, name, 100))) == "EOPNOTSUPP"
        assert failed(mount.do(op.Setxattr(node, name, b"v", 0))) == "EOPNOTSUPP"
        assert failed(mount.do(op.Removexattr(node, name))) == "EOPNOTSUPP"
    assert mount.sent == []
    assert mount.records == []


def test_names_of_other_namespaces_are_not_listed():
    mount = Mount()
    names = (b"security.selinux", b"user.a", b"user.b\xff", b"trusted.x")
    assert mount.do(op.Listxattr(mount.lookup(b"f"), 100), names) == op.Data(b"user.a\0user.b\xff\0")


def test_a_value_that_does_not_fit_is_a_range_error_and_a_size_of_zero_asks_for_its_length():
    mount = Mount()
    node = mount.lookup(b"f")
    assert mount.do(op.Getxattr(node, b"user.a", 0), b"value") == op.XattrSize(5)
    assert mount.do(op.Getxattr(node, b"user.a", 5), b"value") == op.Data(b"value")
    assert failed(mount.do(op.Getxattr(node, b"user.a", 4), b"value")) == "ERANGE"
    assert mount.do(op.Listxattr(node, 0), (b"user.a",)) == op.XattrSize(7)


@pytest.mark.parametrize(("flags", "create", "replace"), [(0, False, False), (1, True, False), (2, False, True)])
def test_the_flags_of_setxattr_reach_the_client(flags, create, replace):
    mount = Mount()
    mount.do(op.Setxattr(mount.lookup(b"f"), b"user.a", b"v", flags), None)
    assert mount.arguments == messages.Setxattr(b"f", b"user.a", b"v", create, replace)


def test_what_can_be_seen_but_not_read_shows_no_extended_attributes():
    mount = Mount([Rule("/f", deny=READ), *EVERYTHING])
    node = mount.lookup(b"f")
    assert failed(mount.do(op.Getxattr(node, b"user.a", 100))) == "EACCES"
    assert mount.records[-1].kind == "refused"
    assert mount.do(op.Setxattr(node, b"user.a", b"v", 0), None) == op.Done()
