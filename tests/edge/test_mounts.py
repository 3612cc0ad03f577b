"""edge/mounts.py: real mounts, in a mount namespace of their own test's directory, never looked into."""

import ctypes
import errno
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import posix1e
import pytest
from harness import need, need_that
from harness.leftovers import descriptors
from harness.namespace import enter_private_namespace
from harness.persona import Persona

from fuse_gated.edge import mounts, process
from fuse_gated.errors import KernelError, OperatorError

SOMEBODY = Persona(4711, 4711)
LIBC = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[int]:
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield directory
    os.close(directory)


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    """A directory to mount on; nothing may stay mounted there."""
    need("root", "fuse")
    path = tmp_path / "point"
    path.mkdir()
    yield path
    left = mounts.mounts_beneath(str(tmp_path))
    while mounts.unmount(str(path)):
        pass
    assert left == []


def mount(path: Path, **options: bool) -> int:
    directory = os.open(path, os.O_PATH | os.O_DIRECTORY)
    try:
        return mounts.mount_fuse(directory, source="acme:web", **options)
    finally:
        os.close(directory)


def flags_of(path: Path) -> set[str]:
    """The mount's own flags, and after a dash the filesystem's."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if fields[4] == str(path):
            return {*fields[5].split(","), *("-" + option for option in after.split()[2].split(","))}
    raise AssertionError(f"{path} is not mounted")


def refused(function: Callable[[], int]) -> int | None:
    try:
        os.close(function())
    except OSError as error:
        return error.errno
    return None


def test_open_beneath_reaches_what_is_there(here: int, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("text")
    for name in ("a/file", b"a/file", "a/../a/file"):
        fd = mounts.open_beneath(here, name, os.O_RDONLY)
        assert os.read(fd, 10) == b"text"
        assert not os.get_inheritable(fd)
        os.close(fd)


def test_open_beneath_makes_a_file_with_its_mode(here: int, tmp_path: Path) -> None:
    os.close(mounts.open_beneath(here, "new", os.O_WRONLY | os.O_CREAT, mode=0o600))
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("missing", errno.ENOENT),
        ("..", errno.EXDEV),
        ("a/../../x", errno.EXDEV),
        ("/etc", errno.EXDEV),
        ("link", errno.ELOOP),
        ("link/passwd", errno.ELOOP),
        ("inner", errno.ELOOP),
    ],
)
def test_open_beneath_follows_nothing_and_leaves_nothing(here: int, tmp_path: Path, name: str, number: int) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("/etc")
    (tmp_path / "inner").symlink_to("a")
    with pytest.raises(OSError) as caught:
        mounts.open_beneath(here, name, os.O_RDONLY)
    assert caught.value.errno == number


def test_open_beneath_does_not_cut_a_name_off(here: int) -> None:
    with pytest.raises(ValueError, match="null"):
        mounts.open_beneath(here, b"a\0b", os.O_RDONLY)


def test_open_beneath_knows_no_magic_links() -> None:
    proc = os.open("/proc/self/fd", os.O_RDONLY)
    with pytest.raises(OSError) as caught:
        mounts.open_beneath(proc, "0", os.O_RDONLY)
    assert caught.value.errno == errno.ELOOP
    os.close(proc)


def test_a_mount_is_entered_only_where_that_is_asked(point: Path) -> None:
    device = mount(point)
    parent = os.open(point.parent, os.O_PATH)
    os.close(mounts.open_beneath(parent, "point", os.O_PATH | os.O_DIRECTORY))
    with pytest.raises(OSError) as caught:
        mounts.open_beneath(parent, "point", os.O_PATH | os.O_DIRECTORY, same_mount=True)
    assert caught.value.errno == errno.EXDEV
    os.close(parent)
    os.close(device)
    assert mounts.unmount(str(point))


def test_a_mount_has_its_type_source_and_options(point: Path) -> None:
    device = mount(point)
    assert mounts.mounts_beneath(str(point.parent)) == [mounts.MountPoint(str(point), "fuse.fuse-gated", "acme:web")]
    flags = flags_of(point)
    assert {"nosuid", "nodev", "-user_id=0", "-group_id=0", "-allow_other", "-max_read=1048576"} <= flags
    assert flags.isdisjoint({"noexec", "nosymfollow", "-default_permissions"})
    assert not os.get_inheritable(device)
    # linux/fuse.h: INIT (26) is the first request that whoever serves it reads.
    assert int.from_bytes(os.read(device, 2**20 + 4096)[4:8], "little") == 26
    os.close(device)
    assert mounts.unmount(str(point))


@pytest.mark.parametrize(
    ("option", "shown"), [("default_permissions", "-default_permissions"), ("noexec", "noexec"), ("nosymfollow", "nosymfollow")]
)
def test_an_option_is_set_when_it_is_asked_for(point: Path, option: str, shown: str) -> None:
    device = mount(point, **{option: True})
    assert shown in flags_of(point)
    os.close(device)
    assert mounts.unmount(str(point))


def test_noexec_changes_on_a_live_mount_and_nothing_else_does(point: Path) -> None:
    device = mount(point, noexec=True, nosymfollow=True)
    before = flags_of(point)
    root = os.open(point, os.O_PATH)
    mounts.remount(root, noexec=False, nosymfollow=True)
    assert flags_of(point) == before - {"noexec"}
    mounts.remount(root, noexec=True, nosymfollow=True)
    assert flags_of(point) == before
    os.close(root)
    os.close(device)
    assert mounts.unmount(str(point))


def test_unmounting_ends_who_waits_for_the_mount(point: Path) -> None:
    device = mount(point)
    child = process.spawn(lambda: (refused(lambda: os.open(point / "file", os.O_RDONLY)) or 0) & 0x7F)
    assert child.wait(0.05) is None
    assert mounts.unmount(str(point))
    assert child.wait(30) in (errno.ENOTCONN, errno.ECONNABORTED)
    with pytest.raises(OSError):
        os.read(device, 2**20 + 4096)
    os.close(device)


def test_unmounting_takes_the_topmost_and_says_when_there_is_none(point: Path) -> None:
    first = mount(point)
    directory = os.open(point.parent, os.O_PATH)
    root = mounts.open_beneath(directory, "point", os.O_PATH)
    second = mounts.mount_fuse(root, source="above")
    for fd in (root, directory, first, second):
        os.close(fd)
    assert [mount.source for mount in mounts.mounts_beneath(str(point.parent))] == ["acme:web", "above"]
    assert mounts.unmount(str(point))
    assert [mount.source for mount in mounts.mounts_beneath(str(point.parent))] == ["acme:web"]
    assert mounts.unmount(str(point))
    assert not mounts.unmount(str(point))
    assert not mounts.unmount(str(point / "missing"))


def test_the_kernel_may_read_ahead_as_much_as_one_read_brings(point: Path) -> None:
    device = mount(point)
    try:
        lines = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        number = next(fields[2] for fields in lines if fields[4] == str(point))
        setting = Path(f"/sys/class/bdi/{number}/read_ahead_kb")
        need_that(os.access(setting, os.W_OK) and not os.statvfs("/sys").f_flag & os.ST_RDONLY, "/sys is read-only here")
        assert int(setting.read_text()) == mounts.MAX_READ // 1024
    finally:
        os.close(device)
        mounts.unmount(str(point))


def test_unmounting_follows_no_link(point: Path) -> None:
    device = mount(point)
    link = point.parent / "link"
    link.symlink_to(point)
    assert not mounts.unmount(str(link))
    os.close(device)
    assert mounts.unmount(str(point))


@pytest.mark.parametrize(
    "name", ["with space", "tab\there", "line\nbreak", "back\\slash", "\\040", "hash#tag", "umläut", b"\xff\xfe"]
)
def test_any_name_of_a_mount_point_is_read_back(tmp_path: Path, name: str | bytes) -> None:
    need("root", "fuse")
    path = tmp_path / os.fsdecode(name)
    path.mkdir()
    device = mount(path)
    try:
        assert [mount.path for mount in mounts.mounts_beneath(str(tmp_path))] == [str(path)]
    finally:
        os.close(device)
        assert mounts.unmount(str(path))


def test_mounts_beside_and_at_a_directory_are_not_beneath_it(point: Path) -> None:
    device = mount(point)
    assert mounts.mounts_beneath(str(point)) == []
    assert mounts.mounts_beneath(str(point)[:-1]) == []
    assert len(mounts.mounts_beneath(str(point.parent) + "/")) == 1
    os.close(device)
    assert mounts.unmount(str(point))


def test_without_a_device_the_way_out_is_told(tmp_path: Path) -> None:
    need("root")

    def hidden() -> int:
        enter_private_namespace()
        empty = tmp_path / "dev"
        empty.mkdir()
        assert LIBC.mount(os.fsencode(empty), b"/dev", None, 4096, None) == 0
        with pytest.raises(OperatorError, match="modprobe fuse"):
            mount(tmp_path)
        return 0

    assert process.spawn(hidden).wait(30) == 0


def test_without_the_right_the_way_out_is_told(tmp_path: Path) -> None:
    need("root", "fuse")

    def stripped() -> int:
        # CAP_SYS_ADMIN (21) goes out of the effective set (capset(2)); /dev/fuse still opens.
        header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert LIBC.capget(header, sets) == 0
        sets[0] &= ~(1 << 21)
        assert LIBC.capset(header, sets) == 0
        before = descriptors()
        with pytest.raises(KernelError, match=r"mount\(2\).*CAP_SYS_ADMIN"):
            mount(tmp_path)
        assert descriptors() == before
        with pytest.raises(KernelError, match=r"umount2\(2\).*CAP_SYS_ADMIN"):
            mounts.unmount(str(tmp_path))
        return 0

    assert process.spawn(stripped).wait(30) == 0


# Who may enter.


def listing(path: Path) -> list[str]:
    return os.listdir(path)


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory of root's in a place that everybody can reach, as pytest's own directories are not."""
    need("root")
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        path = Path(place) / "room"
        path.mkdir(0o700)
        (path / "thing").touch()
        yield path


def test_entry_is_for_the_users_and_groups_named(room: Path) -> None:
    stranger, member = Persona(4712, 4712), Persona(4713, 4713, groups=(4800,))
    mounts.set_entry(str(room), [4711], [4800])
    assert SOMEBODY.call(listing, room) == ["thing"]
    assert member.call(listing, room) == ["thing"]
    assert Persona(4714, 4800).call(listing, room) == ["thing"]
    assert stranger.outcome(listing, room) == "EACCES"
    assert SOMEBODY.outcome(os.unlink, room / "thing") == "EACCES"
    assert SOMEBODY.outcome(Path.touch, room / "new") == "EACCES"
    assert Persona(4712, 0).outcome(listing, room) == "EACCES"


def test_entry_is_replaced_as_a_whole(room: Path) -> None:
    directory = os.open(room, os.O_RDONLY)
    mounts.set_entry(directory, [4711], [])
    mounts.set_entry(directory, [4712, 4712], [])
    assert SOMEBODY.outcome(listing, room) == "EACCES"
    assert Persona(4712, 1).call(listing, room) == ["thing"]
    mounts.set_entry(directory, [], [])
    assert Persona(4712, 1).outcome(listing, room) == "EACCES"
    assert stat.S_IMODE(room.stat().st_mode) == 0o700
    assert not posix1e.has_extended(str(room))
    mounts.set_entry(directory, [4711], [], anyone=True)
    assert stat.S_IMODE(room.stat().st_mode) == 0o755
    assert not posix1e.has_extended(str(room))
    assert Persona(4712, 1).call(listing, room) == ["thing"]
    os.close(directory)


def test_many_and_large_ids_fit_on_tmpfs(tmp_path: Path) -> None:
    need("root")

    def on_tmpfs() -> int:
        enter_private_namespace()
        assert LIBC.mount(b"none", os.fsencode(tmp_path), b"tmpfs", 0, None) == 0
        most = 2**32 - 2
        mounts.set_entry(str(tmp_path), [*range(1000), most], [*range(1000), most])
        text = str(posix1e.ACL(file=str(tmp_path)))
        assert text.count("\nuser:") == 1001
        assert text.count("\ngroup:") == 1002
        return 0

    assert process.spawn(on_tmpfs).wait(30) == 0


def test_a_filesystem_without_acls_is_told_of(tmp_path: Path) -> None:
    need("root")
    with pytest.raises(OperatorError, match=r"ACL of /proc/self.*tmpfs"):
        mounts.set_entry("/proc/self", [1], [])
    directory = os.open("/proc/self", os.O_RDONLY)
    with pytest.raises(OperatorError, match=f"ACL of /proc/{os.getpid()}"):
        mounts.set_entry(directory, [1], [])
    os.close(directory)


def test_without_the_library_for_acls_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "posix1e", None)
    with pytest.raises(OperatorError, match="python3-pylibacl"):
        mounts.set_entry(str(tmp_path), [], [])


# The runtime directory.


def open_and_close(path: Path, **options: Any) -> os.stat_result:
    directory = mounts.open_runtime(str(path), **options)
    try:
        return os.fstat(directory)
    finally:
        os.close(directory)


def test_a_runtime_directory_is_made(tmp_path: Path) -> None:
    need("root")
    status = open_and_close(tmp_path / "run")
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o755)
    assert status.st_ino == (tmp_path / "run").stat().st_ino


def test_a_runtime_directory_that_is_ours_gets_its_mode_or_keeps_it(tmp_path: Path) -> None:
    need("root")
    (tmp_path / "run").mkdir(0o711)
    assert stat.S_IMODE(open_and_close(tmp_path / "run", mode=0o700, keep_mode=True).st_mode) == 0o711
    assert stat.S_IMODE(open_and_close(tmp_path / "run").st_mode) == 0o755
    assert stat.S_IMODE(open_and_close(tmp_path / "other", mode=0o700, keep_mode=True).st_mode) == 0o700


def test_an_ordinary_users_runtime_directory(tmp_path: Path) -> None:
    need("root")
    tmp_path.chmod(0o755)
    (tmp_path / "run").mkdir()
    os.chown(tmp_path / "run", 4711, 4711)
    assert open_and_close(tmp_path / "run", owner=4711).st_uid == 4711


def not_ours(path: Path) -> str:
    with pytest.raises(OperatorError) as caught:
        open_and_close(path)
    assert caught.value.hint
    return str(caught.value)


def test_a_runtime_directory_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    need("root")
    path = tmp_path / "run"
    path.mkdir()
    os.chown(path, 4711, 0)
    assert "runtime directory not ours" in not_ours(path)
    assert "uid 4711" in not_ours(path)
    os.chown(path, 0, 0)
    for mode in (0o775, 0o757, 0o1777):
        path.chmod(mode)
        assert "writable by others" in not_ours(path)
        assert stat.S_IMODE(path.stat().st_mode) == mode
    path.rmdir()
    path.symlink_to(tmp_path)
    assert "symbolic link" in not_ours(path)
    path.unlink()
    path.write_text("")
    assert "no directory" in not_ours(path)
    assert f"(make {tmp_path}/missing, or choose another with --runtime)" in not_ours(tmp_path / "missing" / "run")
    assert "not ours" in not_ours(Path("/"))


def test_an_acl_that_lets_others_write_is_refused(tmp_path: Path) -> None:
    need("root")
    posix1e.ACL(text="u::rwx,u:4711:rwx,g::r-x,m::rwx,o::r-x").applyto(str(tmp_path))
    path = tmp_path / "run"
    path.mkdir()
    posix1e.ACL(text="u::rwx,u:4711:rwx,g::r-x,m::rwx,o::r-x").applyto(str(path))
    assert "others can replace" in not_ours(path)
    posix1e.ACL(text="u::rwx,g::r-x,o::r-x").applyto(str(tmp_path))
    assert "writable by others" in not_ours(path)


def test_a_runtime_directory_that_others_could_replace_is_refused(tmp_path: Path) -> None:
    need("root")
    parent = tmp_path / "parent"
    parent.mkdir()
    parent.chmod(0o777)
    assert "others can replace what is in" in not_ours(parent / "run")
    assert f"(chmod go-w {parent}, or choose another with --runtime)" in not_ours(parent / "run")
    parent.chmod(0o1777)
    open_and_close(parent / "run")
    os.chown(parent, 4711, 0)
    parent.chmod(0o755)
    assert "others can replace what is in" in not_ours(parent / "run")
    os.chown(parent, 0, 4711)
    parent.chmod(0o775)
    assert "others can replace what is in" in not_ours(parent / "run")
    parent.chmod(0o755)
    open_and_close(parent / "run")


def test_a_link_in_the_way_to_it_is_followed_and_what_it_leads_to_is_checked(tmp_path: Path) -> None:
    need("root")
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "var").symlink_to(real)
    open_and_close(tmp_path / "var" / "run")
    assert (real / "run").is_dir()
    real.chmod(0o777)
    assert "others can replace" in not_ours(tmp_path / "var" / "run")


def test_a_full_or_read_only_place_is_told_of(tmp_path: Path) -> None:
    need("root")

    def read_only() -> int:
        enter_private_namespace()
        assert LIBC.mount(b"none", os.fsencode(tmp_path), b"tmpfs", 1, None) == 0
        with pytest.raises(OperatorError, match=r"cannot make .*Read-only"):
            open_and_close(tmp_path / "run")
        return 0

    assert process.spawn(read_only).wait(30) == 0
