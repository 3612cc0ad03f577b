"""What every system call that takes a path must say of a bad one: a table of calls times a table of paths."""

import ctypes
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from harness import ALICE, BOB, outcome, syscalls
from harness.files import create, make_file, open_close

Call = Callable[[str, str], object]
"""Its path, and a spare file for what needs a second name."""

ON_EXISTING: Final[dict[str, Call]] = {
    "access": lambda path, _: syscalls.faccessat(path, os.R_OK),
    "chmod": lambda path, _: os.chmod(path, 0o644),
    "chown": lambda path, _: os.chown(path, -1, -1),
    "getxattr": lambda path, _: os.getxattr(path, "user.any"),
    "link-from": lambda path, _: os.link(path, path + ".new"),
    "listxattr": lambda path, _: os.listxattr(path),
    "lstat": lambda path, _: os.lstat(path),
    "open": lambda path, _: open_close(path, os.O_RDONLY),
    "opendir": lambda path, _: syscalls.DirectoryStream(path).close(),
    "readlink": lambda path, _: os.readlink(path),
    "removexattr": lambda path, _: os.removexattr(path, "user.any"),
    "rename-from": lambda path, _: os.rename(path, path + ".new"),
    "rmdir": lambda path, _: os.rmdir(path),
    "setxattr": lambda path, _: os.setxattr(path, "user.any", b"1"),
    "stat": lambda path, _: os.stat(path),
    "statvfs": lambda path, _: os.statvfs(path),
    "truncate": lambda path, _: os.truncate(path, 0),
    "unlink": lambda path, _: os.unlink(path),
    "utimensat": lambda path, _: syscalls.utimensat(path, (0, syscalls.UTIME_NOW), (0, syscalls.UTIME_NOW)),
}
MAKING: Final[dict[str, Call]] = {
    "creat": lambda path, _: create(path),
    "link-to": lambda path, spare: os.link(spare, path),
    "mkdir": lambda path, _: os.mkdir(path),
    "mkfifo": lambda path, _: os.mkfifo(path),
    "mknod": lambda path, _: os.mknod(path, stat.S_IFREG | 0o644),
    "rename-to": lambda path, spare: os.rename(spare, path),
    "symlink": lambda path, _: os.symlink("target", path),
}
ALL: Final = {**ON_EXISTING, **MAKING}
FOLLOWING: Final = ("access", "chmod", "chown", "creat", "open", "opendir", "stat", "statvfs", "truncate", "utimensat")
REMOVING: Final = ("rename-from", "rmdir", "unlink")


@pytest.fixture
def ground(area: Path) -> Path:
    """An area with a spare file that all may link and move, in a directory where all may make names."""
    make_file(area / "spare")
    (area / "spare").chmod(0o666)
    area.chmod(0o777)
    return area


@pytest.mark.parametrize("name", ALL)
def test_a_component_that_is_a_file_is_enotdir(ground: Path, name: str) -> None:
    make_file(ground / "file")
    assert outcome(ALL[name], str(ground / "file" / "below"), str(ground / "spare")) == "ENOTDIR"


@pytest.mark.parametrize("name", ALL)
def test_a_missing_component_is_enoent(ground: Path, name: str) -> None:
    assert outcome(ALL[name], str(ground / "missing" / "below"), str(ground / "spare")) == "ENOENT"


@pytest.mark.parametrize("name", ALL)
def test_a_component_behind_a_dangling_link_is_enoent(ground: Path, name: str) -> None:
    (ground / "dangling").symlink_to("missing")
    assert outcome(ALL[name], str(ground / "dangling" / "below"), str(ground / "spare")) == "ENOENT"


@pytest.mark.parametrize("name", ON_EXISTING)
def test_a_missing_name_is_enoent(ground: Path, name: str) -> None:
    assert outcome(ON_EXISTING[name], str(ground / "missing"), str(ground / "spare")) == "ENOENT"


@pytest.mark.parametrize("name", ALL)
def test_a_loop_of_links_is_eloop(ground: Path, name: str) -> None:
    (ground / "one").symlink_to("two")
    (ground / "two").symlink_to("one")
    assert outcome(ALL[name], str(ground / "one" / "below"), str(ground / "spare")) == "ELOOP"


@pytest.mark.parametrize("name", FOLLOWING)
def test_calls_that_follow_a_last_link_say_eloop(ground: Path, name: str) -> None:
    (ground / "self").symlink_to("self")
    assert outcome(ALL[name], str(ground / "self"), str(ground / "spare")) == "ELOOP"


@pytest.mark.parametrize("name", ALL)
def test_a_name_of_256_bytes_is_enametoolong(ground: Path, name: str) -> None:
    assert outcome(ALL[name], str(ground / ("n" * 256)), str(ground / "spare")) == "ENAMETOOLONG"


@pytest.mark.parametrize("name", ALL)
def test_a_component_of_256_bytes_is_enametoolong(ground: Path, name: str) -> None:
    assert outcome(ALL[name], str(ground / ("n" * 256) / "below"), str(ground / "spare")) == "ENAMETOOLONG"


@pytest.mark.parametrize("name", ALL)
def test_a_path_of_path_max_bytes_is_enametoolong(ground: Path, name: str) -> None:
    path = str(ground) + "/."
    path += "/." * ((4096 - len(path)) // 2) + "/"
    assert outcome(ALL[name], path[:4096].ljust(4096, "/"), str(ground / "spare")) == "ENAMETOOLONG"


@pytest.mark.parametrize("name", MAKING)
def test_a_name_of_255_bytes_can_be_made(ground: Path, name: str) -> None:
    path = ground / ("n" * 255)
    assert outcome(MAKING[name], str(path), str(ground / "spare")) == "ok"
    assert path.name in os.listdir(ground)


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("link-to", "rename-to", "link-from", "rename-from")])
def test_an_empty_path_is_enoent(ground: Path, name: str) -> None:
    assert outcome(ALL[name], "", str(ground / "spare")) == "ENOENT"


@pytest.mark.parametrize("name", ALL)
def test_a_directory_that_may_not_be_searched_is_eacces(ground: Path, name: str) -> None:
    locked = ground / "locked"
    locked.mkdir()
    make_file(locked / "file")
    (locked / "file").chmod(0o666)
    locked.chmod(0o666)
    assert ALICE.outcome(ALL[name], str(locked / "file"), str(ground / "spare")) == "EACCES"


@pytest.mark.parametrize("name", MAKING)
def test_a_name_in_a_directory_that_may_not_be_written_is_eacces(ground: Path, name: str) -> None:
    closed = ground / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    os.chown(closed, ALICE.uid, ALICE.gid)
    os.chown(ground / "spare", ALICE.uid, ALICE.gid)
    assert ALICE.outcome(MAKING[name], str(closed / "new"), str(ground / "spare")) == "EACCES"
    assert os.listdir(closed) == []


@pytest.mark.parametrize("name", REMOVING)
def test_removing_from_a_directory_that_may_not_be_written_is_eacces(ground: Path, name: str) -> None:
    closed = ground / "closed"
    closed.mkdir()
    (closed / "thing").mkdir() if name == "rmdir" else make_file(closed / "thing")
    os.chown(closed / "thing", BOB.uid, BOB.gid)
    closed.chmod(0o755)
    assert BOB.outcome(ALL[name], str(closed / "thing"), str(ground / "spare")) == "EACCES"
    assert os.listdir(closed) == ["thing"]


@pytest.mark.parametrize("name", MAKING)
def test_a_name_with_a_trailing_slash(ground: Path, name: str) -> None:
    """mkdir takes it; what makes no directory must not (path_resolution(7))."""
    expected = {"mkdir": {"ok"}, "creat": {"EISDIR"}, "rename-to": {"ENOTDIR"}}.get(name, {"ENOENT"})
    assert outcome(MAKING[name], str(ground / "new") + "/", str(ground / "spare")) in expected


@pytest.mark.parametrize("name", sorted(set(ON_EXISTING) - {"opendir"}))
def test_a_file_with_a_trailing_slash_is_enotdir(ground: Path, name: str) -> None:
    make_file(ground / "file")
    assert outcome(ON_EXISTING[name], str(ground / "file") + "/", str(ground / "spare")) == "ENOTDIR"


@pytest.mark.parametrize("name", sorted(set(MAKING) - {"creat", "rename-to"}))
@pytest.mark.parametrize("existing", ["file", "directory", "link", "dangling"])
def test_making_what_exists_is_eexist(ground: Path, name: str, existing: str) -> None:
    make_file(ground / "file")
    (ground / "directory").mkdir()
    (ground / "link").symlink_to("file")
    (ground / "dangling").symlink_to("missing")
    assert outcome(MAKING[name], str(ground / existing), str(ground / "spare")) == "EEXIST"


@pytest.mark.parametrize(
    ("number", "arguments"),
    [
        (2, (0, os.O_RDONLY)),
        (21, (0, 0)),
        (76, (0, 0)),
        (80, (0,)),
        (82, (0, 0)),
        (83, (0, 0o755)),
        (84, (0,)),
        (86, (0, 0)),
        (87, (0,)),
        (88, (0, 0)),
        (90, (0, 0o644)),
        (92, (0, -1, -1)),
        (133, (0, stat.S_IFIFO, 0)),
    ],
    ids=[
        "open",
        "access",
        "truncate",
        "chdir",
        "rename",
        "mkdir",
        "rmdir",
        "link",
        "unlink",
        "symlink",
        "chmod",
        "chown",
        "mknod",
    ],
)
def test_a_bad_address_is_efault(place: object, number: int, arguments: tuple[int, ...]) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers of the system calls are x86-64's")
    assert ctypes.sizeof(ctypes.c_void_p) == 8
    assert outcome(syscalls.at_pointer, number, *arguments) == "EFAULT"
