import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from harness import ALICE, need, outcome

from fuse_gated.edge.files import Export
from fuse_gated.operations import NOW
from fuse_gated.wire import messages as wire


def answer(export: Export, arguments: wire.Arguments) -> str:
    return outcome(export.perform, arguments)


def opened(export: Export, path: bytes, flags: int = wire.OPEN_READ | wire.OPEN_WRITE) -> int:
    return export.perform(wire.Open(path, flags)).handle


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_getattr_of_names_and_handles(export: Export, root: Path) -> None:
    (root / "d").mkdir()
    (root / "d" / "file").write_bytes(b"12345")
    (root / "link").symlink_to("d")
    found = export.perform(wire.Getattr(b"d/file"))
    assert (found.size, found.inode) == (5, (root / "d" / "file").stat().st_ino)
    assert export.perform(wire.Getattr(b"")).inode == root.stat().st_ino
    assert stat.S_ISLNK(export.perform(wire.Getattr(b"link")).mode)
    handle = opened(export, b"d/file")
    (root / "d" / "file").unlink()
    found = export.perform(wire.Getattr(handle))
    assert (found.size, found.nlink) == (5, 0)
    assert answer(export, wire.Getattr(b"d/file")) == "ENOENT"
    assert answer(export, wire.Getattr(handle + 1)) == "EBADF"


def test_setattr_in_one_go(export: Export, root: Path) -> None:
    (root / "file").write_bytes(b"12345")
    found = export.perform(wire.Setattr(b"file", mode=0o604, size=3, atime=11, mtime=22))
    assert (found.mode, found.size, found.atime, found.mtime) == (0o100604, 3, 11, 22)
    assert (root / "file").read_bytes() == b"123"
    found = export.perform(wire.Setattr(b"file", atime=NOW))
    assert found.atime > 10**18
    assert found.mtime == 22
    assert export.perform(wire.Setattr(b"file")) == found


def test_setattr_of_an_unlinked_file(export: Export, root: Path) -> None:
    (root / "file").write_bytes(b"12345")
    handle = opened(export, b"file")
    (root / "file").chmod(0o400)
    (root / "file").unlink()
    assert export.perform(wire.Setattr(handle, size=2, mode=0o600, mtime=5)).size == 2


def test_setattr_through_a_handle_that_reads(export: Export, root: Path) -> None:
    (root / "file").write_bytes(b"12345")
    handle = opened(export, b"file", wire.OPEN_READ)
    assert export.perform(wire.Setattr(handle, size=4)).size == 4


def test_setattr_changes_a_link_itself(export: Export, root: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"12345")
    before = victim.stat()
    (root / "link").symlink_to(victim)
    assert answer(export, wire.Setattr(b"link", mode=0o777)) == "EOPNOTSUPP"
    assert answer(export, wire.Setattr(b"link", size=0)) == "EINVAL"
    assert export.perform(wire.Setattr(b"link", mtime=77)).mtime == 77
    assert (root / "link").lstat().st_mtime_ns == 77
    if os.geteuid() == 0:
        assert export.perform(wire.Setattr(b"link", uid=12, gid=13)).uid == 12
    assert victim.stat() == before


def test_sizes_and_ids_that_make_no_sense(export: Export, root: Path) -> None:
    (root / "file").touch()
    for size in (-1, 2**63, 2**64 - 1):
        assert answer(export, wire.Setattr(b"file", size=size)) == "EINVAL"
    assert answer(export, wire.Setattr(b"file", size=2**63 - 1)) in ("EFBIG", "EINVAL")
    for number in (-1, 2**32 - 1, 2**40):
        assert answer(export, wire.Setattr(b"file", uid=number)) == "EINVAL"
        assert answer(export, wire.Setattr(b"file", gid=number)) == "EINVAL"
    assert answer(export, wire.Setattr(b"", size=1)) == "EISDIR"


def test_ownership_is_given_as_asked(export: Export, root: Path) -> None:
    need("root")
    (root / "file").touch()
    assert export.perform(wire.Setattr(b"file", uid=1234)).uid == 1234
    found = export.perform(wire.Setattr(b"file", gid=4321))
    assert (found.uid, found.gid) == (1234, 4321)


def test_making_and_removing(export: Export, root: Path) -> None:
    assert export.perform(wire.Mkdir(b"d", 0o751)).mode == 0o040751
    assert export.perform(wire.Mknod(b"d/file", 0o100604, 0)).mode == 0o100604
    assert export.perform(wire.Mknod(b"d/plain", 0o604, 0)).mode == 0o100604
    assert export.perform(wire.Mknod(b"d/fifo", 0o010622, 0)).mode == 0o010622
    assert export.perform(wire.Mknod(b"d/socket", 0o140600, 0)).mode == 0o140600
    assert stat.S_ISLNK(export.perform(wire.Symlink(b"d/link", b"../../anywhere")).mode)
    assert export.perform(wire.Readlink(b"d/link")) == b"../../anywhere"
    assert export.perform(wire.Link(b"d/file", b"d/second")).nlink == 2
    assert sorted(os.listdir(root / "d")) == ["fifo", "file", "link", "plain", "second", "socket"]
    assert answer(export, wire.Rmdir(b"d")) == "ENOTEMPTY"
    for name in os.listdir(root / "d"):
        assert export.perform(wire.Unlink(b"d/" + name.encode())) is None
    assert answer(export, wire.Unlink(b"d")) == "EISDIR"
    assert export.perform(wire.Rmdir(b"d")) is None
    assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "errno_name"),
    [
        (wire.Mkdir(b"there", 0o755), "EEXIST"),
        (wire.Mkdir(b"missing/d", 0o755), "ENOENT"),
        (wire.Mkdir(b"", 0o755), "EINVAL"),
        (wire.Mknod(b"there", 0o100644, 0), "EEXIST"),
        (wire.Mknod(b"x", 0o040644, 0), "EPERM"),
        (wire.Mknod(b"x", 0o120644, 0), "EINVAL"),
        (wire.Mknod(b"x", 0o170644, 0), "EINVAL"),
        (wire.Mknod(b"x", 0o020666, 0x103), "EPERM"),
        (wire.Mknod(b"x", 0o060666, 0x800), "EPERM"),
        (wire.Mknod(b"x", 0o100644, -1), "EINVAL"),
        (wire.Mknod(b"x", 0o100644, 2**32), "EINVAL"),
        (wire.Symlink(b"x", b""), "ENOENT"),
        (wire.Symlink(b"x", b"a\0b"), "EINVAL"),
        (wire.Symlink(b"x", b"n" * 4096), "ENAMETOOLONG"),
        (wire.Symlink(b"there", b"x"), "EEXIST"),
        (wire.Readlink(b"there"), "EINVAL"),
        (wire.Readlink(b""), "EINVAL"),
        (wire.Unlink(b""), "EINVAL"),
        (wire.Unlink(b"missing"), "ENOENT"),
        (wire.Rmdir(b"there/file"), "ENOTDIR"),
        (wire.Rename(b"there", b"there/deeper"), "EINVAL"),
        (wire.Rename(b"missing", b"x"), "ENOENT"),
        (wire.Rename(b"", b"x"), "EINVAL"),
        (wire.Link(b"there", b"x"), "EPERM"),
        (wire.Link(b"there/file", b"there/file"), "EEXIST"),
        (wire.Link(99, b"x"), "EBADF"),
        (wire.Access(b"there", 8), "EINVAL"),
        (wire.Access(b"missing", 0), "ENOENT"),
        (wire.Access(99, 0), "EBADF"),
        (wire.Getxattr(b"there/file", b"user.none"), "ENODATA"),
        (wire.Getxattr(b"missing", b"user.none"), "ENOENT"),
        (wire.Removexattr(b"there/file", b"user.none"), "ENODATA"),
        (wire.Setxattr(b"there/file", b"user.a", b"x" * 70000), "E2BIG"),
    ],
)
def test_what_cannot_be_is_refused(export: Export, root: Path, arguments: wire.Arguments, errno_name: str) -> None:
    (root / "there").mkdir()
    (root / "there" / "file").touch()
    assert answer(export, arguments) == errno_name


def test_renaming(export: Export, root: Path) -> None:
    (root / "a").write_text("a")
    (root / "b").write_text("b")
    assert answer(export, wire.Rename(b"a", b"b", no_replace=True)) == "EEXIST"
    assert answer(export, wire.Rename(b"a", b"b", exchange=True)) == "ok"
    assert (root / "a").read_text() == "b"
    assert answer(export, wire.Rename(b"a", b"c", exchange=True)) == "ENOENT"
    assert answer(export, wire.Rename(b"a", b"c", no_replace=True)) == "ok"
    assert answer(export, wire.Rename(b"a", b"c", no_replace=True, exchange=True)) == "EINVAL"
    assert answer(export, wire.Rename(b"c", b"b")) == "ok"
    assert [path.name for path in root.iterdir()] == ["b"]


def test_linking_an_open_file(export: Export, root: Path) -> None:
    (root / "file").write_text("text")
    handle = opened(export, b"file")
    (root / "moved").hardlink_to(root / "file")
    (root / "file").unlink()
    assert export.perform(wire.Link(handle, b"again")).nlink == 2
    assert (root / "again").read_text() == "text"
    for name in ("moved", "again"):
        (root / name).unlink()
    assert answer(export, wire.Link(handle, b"never")) == "ENOENT"


def test_linking_a_link_links_the_link(export: Export, root: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("secret")
    (root / "link").symlink_to(tmp_path / "victim")
    assert stat.S_ISLNK(export.perform(wire.Link(b"link", b"second")).mode)


def test_access_as_the_clients_user(public_root: Path, no_umask: None) -> None:
    need("root")
    root = public_root
    os.chown(root, ALICE.uid, ALICE.gid)
    (root / "file").touch(0o640)
    (root / "secret").touch(0o600)
    (root / "link").symlink_to("/etc/passwd")

    def answers() -> list[str]:
        export = Export(root)
        return [
            answer(export, wire.Access(b"file", 4)),
            answer(export, wire.Access(b"secret", 0)),
            answer(export, wire.Access(b"secret", 4)),
            answer(export, wire.Access(b"", 7)),
            answer(export, wire.Access(b"link", 7)),
            answer(export, wire.Open(b"secret", wire.OPEN_READ)),
            answer(export, wire.Access(export.perform(wire.Opendir(b"")).handle, 2)),
        ]

    assert ALICE.with_groups(0).call(answers) == ["ok", "ok", "EACCES", "ok", "ok", "EACCES", "ok"]


def test_statfs_is_the_roots(export: Export, root: Path) -> None:
    status = os.statvfs(root)
    found = export.perform(wire.Statfs())
    assert (found.blocks, found.block_size, found.fragment_size) == (status.f_blocks, status.f_bsize, status.f_frsize)
    assert (found.files, found.name_max) == (status.f_files, 255)


def test_extended_attributes(export: Export, root: Path) -> None:
    (root / "file").touch()
    handle = opened(export, b"file")
    assert export.perform(wire.Setxattr(b"file", b"user.a", b"\0one")) is None
    assert export.perform(wire.Setxattr(handle, b"user.b", b"", create=True)) is None
    assert answer(export, wire.Setxattr(b"file", b"user.a", b"x", create=True)) == "EEXIST"
    assert answer(export, wire.Setxattr(b"file", b"user.c", b"x", replace=True)) == "ENODATA"
    assert export.perform(wire.Getxattr(handle, b"user.a")) == b"\0one"
    assert set(export.perform(wire.Listxattr(b"file"))) == {b"user.a", b"user.b"}
    assert export.perform(wire.Removexattr(handle, b"user.a")) is None
    assert export.perform(wire.Listxattr(handle)) == (b"user.b",)
    if os.geteuid() == 0:
        os.setxattr(root / "file", "trusted.secret", b"1")
        assert export.perform(wire.Listxattr(handle)) == (b"user.b",)
    (root / "fifo").symlink_to("nowhere")
    assert answer(export, wire.Setxattr(b"fifo", b"user.a", b"1")) == "EPERM"


@pytest.mark.parametrize("owner", [wire.Owner(1001, 1002), wire.Owner(0, 0)])
def test_what_is_made_is_given_to_its_owner(export: Export, root: Path, owner: wire.Owner) -> None:
    need("root")
    made = [
        export.perform(wire.Mkdir(b"d", 0o755, owner)),
        export.perform(wire.Mknod(b"fifo", 0o010600, 0, owner)),
        export.perform(wire.Symlink(b"link", b"target", owner)),
        export.perform(wire.Create(b"file", wire.OPEN_WRITE, 0o644, owner)).attributes,
    ]
    assert {(found.uid, found.gid) for found in made} == {(owner.uid, owner.gid)}


def test_a_setgid_directory_gives_its_group(export: Export, root: Path) -> None:
    need("root")
    os.chown(root, 7, 77)
    root.chmod(0o2777)
    owner = wire.Owner(1001, 1002)
    directory = export.perform(wire.Mkdir(b"d", 0o755, owner))
    file = export.perform(wire.Create(b"file", wire.OPEN_WRITE, 0o644, owner)).attributes
    assert (directory.uid, directory.gid, directory.mode) == (1001, 77, 0o042755)
    assert (file.uid, file.gid) == (1001, 77)


@pytest.mark.parametrize(
    "arguments",
    [
        wire.Mkdir(b"x", 0o755, wire.Owner(2**32 - 1, 0)),
        wire.Mknod(b"x", 0o100644, 0, wire.Owner(0, -1)),
        wire.Symlink(b"x", b"y", wire.Owner(2**40, 0)),
        wire.Create(b"x", wire.OPEN_WRITE, 0o644, wire.Owner(-1, -1)),
    ],
)
def test_what_cannot_be_given_away_is_not_left(export: Export, root: Path, arguments: wire.Arguments) -> None:
    need("root")
    assert answer(export, arguments) == "EINVAL"
    assert list(root.iterdir()) == []


def test_a_client_without_the_right_gives_nothing_away(public_root: Path, no_umask: None) -> None:
    need("root")
    root = public_root
    root.chmod(0o777)

    def answers() -> tuple[tuple[str, ...], list[str]]:
        export = Export(root)
        owner = wire.Owner(ALICE.uid, ALICE.gid)
        return export.capabilities, [
            answer(export, wire.Mkdir(b"x", 0o755, owner)),
            answer(export, wire.Create(b"x", wire.OPEN_WRITE, 0o644, owner)),
            answer(export, wire.Setattr(b"", uid=0)),
        ]

    assert ALICE.call(answers) == (("watches", "after"), ["EPERM", "EPERM", "EPERM"])
    assert list(root.iterdir()) == []


def test_without_the_right_what_was_made_is_taken_back(export: Export, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export._precautions, "can_chown", False)
    owner = wire.Owner(1, 1)
    for arguments in (wire.Mkdir(b"x", 0o755, owner), wire.Create(b"x", wire.OPEN_WRITE, 0o644, owner)):
        assert answer(export, arguments) == "EPERM"
        assert list(root.iterdir()) == []


@pytest.mark.parametrize("put", ["link", "directory", "foreign"])
def test_what_was_swapped_in_is_not_given_away(
    export: Export, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put: str
) -> None:
    need("root")
    victim = tmp_path / "victim"
    victim.touch(0o600)
    made = os.mknod

    def swapped(name: bytes, *arguments: Any, **keywords: Any) -> None:
        made(name, *arguments, **keywords)
        path = root / name.decode()
        path.unlink()
        if put == "link":
            path.hardlink_to(victim)
        elif put == "directory":
            path.mkdir()
        else:
            path.touch()
            os.chown(path, ALICE.uid, ALICE.gid)

    monkeypatch.setattr(os, "mknod", swapped)
    assert answer(export, wire.Mknod(b"x", 0o100600, 0, wire.Owner(1001, 1001))) == "ESTALE"
    assert victim.stat().st_uid == 0


def test_trusted_servers_set_setuid_for_the_new_owner(root: Path, no_umask: None) -> None:
    need("root")
    export = Export(root, trust_server=True)
    owner = wire.Owner(1001, 1002)
    assert export.perform(wire.Create(b"file", wire.OPEN_WRITE, 0o6755, owner)).attributes.mode == 0o106755
    assert export.perform(wire.Mknod(b"node", 0o106755, 0, owner)).mode == 0o106755
    assert export.perform(wire.Setattr(b"file", mode=0o4711)).mode == 0o104711
    assert export.perform(wire.Mknod(b"null", 0o020666, 0x103)).rdev == 0x103
    assert export.perform(wire.Setxattr(b"file", b"trusted.x", b"1")) is None
    assert b"trusted.x" in export.perform(wire.Listxattr(b"file"))
    export.close()


CHANGES: list[wire.Arguments] = [
    wire.Setattr(b"file", mode=0o600),
    wire.Setattr(1, size=0),
    wire.Symlink(b"x", b"y"),
    wire.Mknod(b"x", 0o100644, 0),
    wire.Mkdir(b"x", 0o755),
    wire.Unlink(b"file"),
    wire.Rmdir(b"d"),
    wire.Rename(b"file", b"x"),
    wire.Link(b"file", b"x"),
    wire.Open(b"file", wire.OPEN_WRITE),
    wire.Open(b"file", wire.OPEN_READ | wire.OPEN_WRITE),
    wire.Open(b"file", wire.OPEN_READ | wire.OPEN_TRUNCATE),
    wire.Create(b"x", wire.OPEN_WRITE, 0o644),
    wire.Create(b"file", wire.OPEN_READ, 0o644),
    wire.Write(1, 0, memoryview(b"x")),
    wire.Setxattr(b"file", b"user.a", b""),
    wire.Removexattr(b"file", b"user.a"),
    wire.Fallocate(1, 0, 10, 0),
    wire.CopyFileRange(1, 0, 1, 0, 1),
    wire.Access(b"file", os.W_OK),
    wire.Access(b"d", os.W_OK),
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_read_only_export_changes_nothing(root: Path, no_umask: None, change: wire.Arguments) -> None:
    (root / "file").write_text("text")
    (root / "d").mkdir()
    os.mkfifo(root / "fifo")
    export = Export(root, read_only=True)
    assert export.capabilities == ("read-only", "watches", "after")
    handle = opened(export, b"file", wire.OPEN_READ)
    assert handle == 1
    before = (root / "file").stat()
    assert answer(export, change) == "EROFS"
    assert (root / "file").stat() == before
    assert sorted(os.listdir(root)) == ["d", "fifo", "file"]
    assert export.perform(wire.Read(handle, 0, 10)) == b"text"
    assert answer(export, wire.Setlk(handle, 1, 0, 0, 0)) == "ok"
    assert answer(export, wire.Setlk(handle, 1, 0, 0, 1, flock=True)) == "ok"
    assert answer(export, wire.Access(b"file", os.R_OK)) == "ok"
    assert answer(export, wire.Access(b"fifo", os.W_OK)) == "ok"
    export.close()


def test_special_files_are_told_about_without_being_opened(export: Export, root: Path) -> None:
    os.mkfifo(root / "fifo", 0o600)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(os.fsencode(root / "socket"))
    for name in (b"fifo", b"socket"):
        assert export.perform(wire.Setattr(name, mode=0o622, mtime=5)).mtime == 5
        assert mode(root / name.decode()) == 0o622
        assert answer(export, wire.Setattr(name, size=0)) == "EINVAL"
        assert answer(export, wire.Access(name, 2)) == "ok"
        assert answer(export, wire.Setxattr(name, b"user.a", b"1")) == "EPERM"
        assert export.perform(wire.Link(name, name + b"2")).nlink == 2
        assert answer(export, wire.Unlink(name)) == "ok"
