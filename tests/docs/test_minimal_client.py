"""The documents suffice: a client that was written from them alone is mounted, and its files are read."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Persona, Stage, outcome
from harness.log import DEADLINE, Log
from harness.server import token_file

CLIENT = Path(__file__).with_name("minimal_client.py")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A bit of everything that can be read."""
    root = tmp_path / "tree"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "er" / "file").write_text("far down\n")
    (root / "large").write_bytes(os.urandom(3 * 2**20 + 17))
    (root / "empty").touch()
    (root / "link").symlink_to("deep/er/file")
    (root / "outside").symlink_to("/etc/passwd")
    (root / os.fsdecode(b"n\xe9t UTF-8 \n")).write_text("odd name\n")
    os.mkfifo(root / "fifo")
    (root / "many").mkdir()
    for number in range(2500):
        (root / "many" / f"entry-{number}").touch()
    return root


@pytest.fixture
def mount(stage: Stage, tree: Path) -> Iterator[Path]:
    server = stage.server()
    output, errors = Log(stage.directory / "minimal.stdout"), Log(stage.directory / "minimal.stderr")
    command = [sys.executable, str(CLIENT), str(tree), server.url, str(token_file(stage.directory, "acme")), "docs"]
    with output.path.open("wb") as stdout, errors.path.open("wb") as stderr:
        client = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=stage.directory)
    try:
        yield Path(output.wait_for("mounted at", client).removeprefix("mounted at "))
        client.terminate()
        assert client.wait(DEADLINE) == 0
        assert errors.text() == ""
        left = f"session-closed: {[record for record in server.audit() if record['FUSE_GATED_KIND'] == 'session-closed']}"
        assert "the client left in order" in left
    finally:
        client.kill()
        client.wait()


def snapshot(root: Path) -> dict[str, tuple[int, int, int, str]]:
    """Every name beneath: (type, size of a file, mtime of what is no link, target of a link)."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(directory, name)
            status = path.lstat()
            target = os.readlink(path) if path.is_symlink() and name != "outside" else ""
            found[str(path.relative_to(root))] = (stat.S_IFMT(status.st_mode), status.st_size, status.st_mtime_ns, target)
    return found


def test_a_client_written_from_the_documents_serves_a_tree(mount: Path, tree: Path) -> None:
    assert snapshot(mount) == snapshot(tree)
    for path in (path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()):
        assert (mount / path.relative_to(tree)).read_bytes() == path.read_bytes()
    assert (mount / "link").read_text() == "far down\n"
    assert outcome(os.readlink, mount / "outside") == "EACCES"
    assert outcome(os.stat, mount / "missing") == "ENOENT"
    assert outcome(os.listdir, mount / "empty") == "ENOTDIR"
    assert os.statvfs(mount).f_blocks == os.statvfs(tree).f_blocks


def test_it_can_be_changed_by_nobody(mount: Path) -> None:
    assert outcome(os.mkdir, mount / "new") == "EROFS"
    assert outcome(os.unlink, mount / "empty") == "EROFS"
    assert outcome(os.open, mount / "empty", os.O_WRONLY) == "EROFS"
    assert outcome(os.chmod, mount / "empty", 0o600) == "EROFS"


def test_what_it_does_not_serve_fails_and_nothing_else(mount: Path) -> None:
    """An operation that the client answers with ENOSYS is asked again, and the session goes on."""
    for _ in range(2):
        assert outcome(os.getxattr, mount / "empty", "user.any") == "EOPNOTSUPP"
    assert (mount / "deep" / "er" / "file").read_text() == "far down\n"


def test_several_programs_at_once(mount: Path, tree: Path) -> None:
    readers = [subprocess.Popen(["cmp", str(mount / "large"), str(tree / "large")]) for _ in range(4)]
    assert [reader.wait(DEADLINE) for reader in readers] == [0] * 4


def test_a_stranger_does_not_get_in(mount: Path) -> None:
    assert Persona(61001, 62001).outcome(os.listdir, mount) == "EACCES"
