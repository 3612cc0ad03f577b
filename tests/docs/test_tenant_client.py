"""The client in TypeScript, written from docs/api alone: built, mounted, and worked on."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Stage, need, need_that, outcome
from harness.certificates import Authority
from harness.log import DEADLINE, Log
from harness.server import token_file

SOURCES = Path(__file__).parents[2] / "docs" / "examples" / "tenant-client"
MODULES = Path(sys.prefix) / "node_modules"
DEBIAN_TYPES = Path("/usr/share/nodejs/@types/node")

Start = Callable[..., Path]


def compiler() -> str:
    """npm's tsc beside the virtual environment, or Debian's."""
    ours = MODULES / ".bin" / "tsc"
    if ours.exists():
        return str(ours)
    need("tsc")
    return "tsc"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("node")
    directory = tmp_path_factory.mktemp("tenant-client")
    for source in [*SOURCES.glob("*.ts"), *SOURCES.glob("*.json")]:
        shutil.copy(source, directory)
    (directory / "node_modules" / "@types").mkdir(parents=True)
    types = MODULES / "@types" / "node" if (MODULES / "@types" / "node").exists() else DEBIAN_TYPES
    need_that(types.exists(), f"this machine lacks Node's types ({MODULES}/@types/node or {DEBIAN_TYPES})")
    (directory / "node_modules/@types/node").symlink_to(types)
    if (MODULES / "undici-types").exists():
        (directory / "node_modules/undici-types").symlink_to(MODULES / "undici-types")
    built = subprocess.run([compiler()], cwd=directory, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout
    return directory / "build" / "client.js"


@pytest.fixture
def start(stage: Stage, build: Path) -> Iterator[Start]:
    """Starts the client for a directory; returns where the server has mounted it. At the end it must leave in order."""
    running: list[tuple[subprocess.Popen[bytes], Log]] = []

    def started(tree: Path, url: str, *options: str) -> Path:
        output, errors = Log(stage.directory / "node.stdout"), Log(stage.directory / "node.stderr")
        command = ["node", str(build), str(tree), url, str(token_file(stage.directory, "acme")), "docs", *options]
        with output.path.open("wb") as stdout, errors.path.open("wb") as stderr:
            client = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=stage.directory)
        running.append((client, errors))
        return Path(output.wait_for("mounted at", client).removeprefix("mounted at ").strip())

    try:
        yield started
        for client, errors in running:
            client.terminate()
            assert client.wait(DEADLINE) == 0, errors.text()
            assert errors.text() == ""
    finally:
        for client, _ in running:
            client.kill()
            client.wait()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "er" / "file").write_text("far down\n")
    (root / "large").write_bytes(os.urandom(3 * 2**20 + 17))
    (root / "link").symlink_to("deep/er/file")
    (root / "outside").symlink_to("/etc/passwd")
    (root / os.fsdecode(b"n\xe9t UTF-8 \n")).write_text("odd name\n")
    os.mkfifo(root / "fifo")
    (root / "many").mkdir()
    for number in range(2500):
        (root / "many" / f"entry-{number}").touch()
    return root


def snapshot(root: Path) -> dict[str, tuple[int, int, int]]:
    """Every name beneath: (mode, size of a file, mtime)."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            status = Path(directory, name).lstat()
            found[str(Path(directory, name).relative_to(root))] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


def test_a_tree_is_read(stage: Stage, start: Start, tree: Path) -> None:
    mount = start(tree, stage.server().url)
    told = snapshot(mount)
    # x bits are shown where execute is allowed, as it is here.
    assert told == snapshot(tree)
    for path in (path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()):
        assert (mount / path.relative_to(tree)).read_bytes() == path.read_bytes()
    assert (mount / "link").read_text() == "far down\n"
    assert outcome(os.readlink, mount / "outside") == "EACCES"
    assert outcome(os.stat, mount / "missing") == "ENOENT"
    assert os.statvfs(mount).f_blocks == os.statvfs(tree).f_blocks


def test_a_tree_is_changed(stage: Stage, start: Start, tree: Path) -> None:
    mount = start(tree, stage.server().url)
    (mount / "new").mkdir(mode=0o750)
    (mount / "new" / "file").write_bytes(b"x" * 3_000_000)
    assert (tree / "new" / "file").stat().st_size == 3_000_000
    with (mount / "new" / "log").open("ab") as log:
        log.write(b"from the server\n")
        log.flush()
        with (tree / "new" / "log").open("ab") as local:
            local.write(b"from the client\n")
        log.write(b"once more\n")
    assert (tree / "new" / "log").read_text() == "from the server\nfrom the client\nonce more\n"
    os.truncate(mount / "new" / "file", 10)
    os.chmod(mount / "new" / "file", 0o4711)
    assert stat.S_IMODE((tree / "new" / "file").stat().st_mode) == 0o711  # setuid is not the server's to give
    os.utime(mount / "new" / "file", ns=(10**18, 10**18))
    assert abs((tree / "new" / "file").stat().st_mtime_ns - 10**18) < 1000
    (mount / "new" / "file").rename(mount / "moved")
    (mount / "new" / "way").symlink_to("log")
    assert (tree / "moved").read_bytes() == b"x" * 10
    assert os.readlink(tree / "new" / "way") == "log"
    assert outcome(os.rmdir, mount / "new") == "ENOTEMPTY"
    shutil.rmtree(mount / "new")
    (mount / "moved").unlink()
    assert not (tree / "new").exists()
    assert not (tree / "moved").exists()


def test_what_it_does_not_serve_fails_and_nothing_else(stage: Stage, start: Start, tree: Path) -> None:
    mount = start(tree, stage.server().url)
    for _ in range(2):
        assert outcome(os.getxattr, mount / "large", "user.any") == "EOPNOTSUPP"
        assert outcome(os.link, mount / "large", mount / "other") == "EOPNOTSUPP"
    assert (mount / "deep" / "er" / "file").read_text() == "far down\n"


def test_a_link_put_in_the_way_is_not_followed(stage: Stage, start: Start, tree: Path, tmp_path: Path) -> None:
    """The server's kernel believes that it is a directory; the client looks again."""
    mount = start(tree, stage.server().url)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_text("outside\n")
    directory = os.open(mount / "deep" / "er", os.O_RDONLY)
    try:
        (tree / "deep" / "er").rename(tree / "deep" / "gone")
        (tree / "deep" / "er").symlink_to(tmp_path / "secret")
        assert outcome(os.open, "file", os.O_RDONLY, dir_fd=directory) in ("ENOTDIR", "ESTALE", "ENOENT")
    finally:
        os.close(directory)


def test_read_only(stage: Stage, start: Start, tree: Path) -> None:
    mount = start(tree, stage.server().url, "--read-only")
    assert outcome(os.mkdir, mount / "new") == "EROFS"
    assert outcome(os.open, mount / "large", os.O_WRONLY) == "EROFS"
    assert (mount / "link").read_text() == "far down\n"


def test_several_programs_at_once(stage: Stage, start: Start, tree: Path) -> None:
    mount = start(tree, stage.server().url)
    readers = [subprocess.Popen(["cmp", str(mount / "large"), str(tree / "large")]) for _ in range(4)]
    assert [reader.wait(DEADLINE) for reader in readers] == [0] * 4


def test_over_tls(stage: Stage, start: Start, tree: Path) -> None:
    authority = Authority(stage.directory)
    pair = authority.issue("server")
    server = stage.server(settings={"tls": {"certificate": str(pair.certificate), "key": str(pair.key)}})
    mount = start(tree, server.url.replace("ws://127.0.0.1", "wss://localhost"), "--ca", str(authority.certificate))
    assert (mount / "deep" / "er" / "file").read_text() == "far down\n"


def test_a_refusal_is_told(stage: Stage, build: Path, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("fg_wrong")
    command = ["node", str(build), str(tree), stage.server().url, str(tmp_path / "wrong"), "docs"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert refused.returncode == 3
    assert refused.stderr == "the server refused: 401 the token is not known here\n"
