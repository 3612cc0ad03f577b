"""`fuse-gatectl files`, as a process, on a session without a mount."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from harness import Export, Server, Stage
from harness.waiting import records


@pytest.fixture(scope="module")
def server(stage: Stage) -> Server:
    rules = [{"path": "/closed/**", "deny": ["read", "write"]}, {"path": "/**", "allow": ["read", "write", "delete"]}]
    return stage.server(stage.tenant(rules=rules), settings={"drivers": ["network"]})


@pytest.fixture(scope="module")
def export(stage: Stage, server: Server) -> Path:
    client: Export = stage.export(server)
    client.wait_for_event("mounted")
    (client.directory / "closed").mkdir()
    (client.directory / "closed" / "f").write_text("closed")
    return client.directory


def run(server: Server, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """fuse-gatectl, to its end."""
    command = [sys.executable, "-m", "fuse_gated.commands.fuse_gatectl", "--runtime", str(server.runtime), *arguments]
    return subprocess.run(command, input=given, capture_output=True, timeout=60)


def said(server: Server, *arguments: str) -> str:
    done = run(server, *arguments)
    assert done.returncode == 1, done
    return done.stderr.decode()


def test_there_and_back(server: Server, export: Path, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("content")
    (tmp_path / "script").chmod(0o750)
    (export / "d").mkdir()
    assert run(server, "files", "put", str(tmp_path / "script"), "acme/work:d").returncode == 0
    assert (export / "d" / "script").read_text() == "content"
    assert (export / "d" / "script").stat().st_mode & 0o777 == 0o750
    assert run(server, "files", "put", "-", "acme/work:/d/typed", given=b"typed in").returncode == 0
    assert run(server, "files", "cat", "acme/work:d/typed", "acme/work:d/script").stdout == b"typed incontent"
    assert run(server, "files", "get", "acme/work:d/typed", str(tmp_path)).returncode == 0
    assert (tmp_path / "typed").read_bytes() == b"typed in"
    assert run(server, "files", "get", "acme/work:d/typed", "-").stdout == b"typed in"
    assert run(server, "files", "get", "acme/work:d/typed", str(tmp_path / "other")).returncode == 0
    assert (tmp_path / "other").read_bytes() == b"typed in"
    assert run(server, "files", "rm", "acme/work:d/typed").returncode == 0
    assert "d is a directory" in said(server, "files", "rm", "acme/work:d")
    assert run(server, "files", "rm", "--recursive", "acme/work:d").returncode == 0
    assert not (export / "d").exists()


def test_listings(server: Server, export: Path) -> None:
    (export / "l").mkdir()
    (export / "l" / "f").write_bytes(bytes(1234))
    (export / "l" / "dir").mkdir()
    (export / "l" / "to-f").symlink_to("f")
    Path(os.fsdecode(os.fsencode(export) + b"/l/\x1b[31m\xff")).touch()
    plain = run(server, "files", "ls", "acme/work:l").stdout.decode()
    assert plain == "\\x1b[31m\\udcff\ndir\nf\nto-f\n"
    long = run(server, "files", "ls", "-l", "acme/work:l").stdout.decode().splitlines()
    assert long[2].startswith("-rw-r--r--          1234  20")
    assert long[2].endswith("  f")
    found = {entry["name"]: entry for entry in json.loads(run(server, "files", "ls", "--json", "acme/work:l").stdout)}
    assert {name: entry["type"] for name, entry in found.items()} == {
        "f": "file", "dir": "directory", "to-f": "link", "\x1b[31m\udcff": "file",
    }  # fmt: skip
    assert (found["f"]["size"], found["f"]["mode"]) == (1234, "0644")
    assert run(server, "files", "ls", "acme/work:l/f").stdout == b"f\n"
    everything = run(server, "files", "ls", "-l", "acme/work:").stdout.decode()
    assert "closed" in everything


def test_what_goes_wrong(server: Server, export: Path, tmp_path: Path) -> None:
    (export / "f").write_text("kept")
    assert "acme/work/nothing: No such file or directory" in said(server, "files", "cat", "acme/work:nothing")
    refused = said(server, "files", "cat", "acme/work:closed/f")
    assert "acme/work/closed/f: Permission denied" in refused
    assert "fuse-gatectl explain" in refused
    assert "there is no session 'acme/other'" in said(server, "files", "ls", "acme/other:")
    assert f"{tmp_path}/nothing: No such file" in said(server, "files", "put", f"{tmp_path}/nothing", "acme/work:f")
    assert (export / "f").read_text() == "kept"
    usage = run(server, "files", "cat", "no-colon")
    assert usage.returncode == 2
    assert b"'no-colon' is no SESSION:PATH" in usage.stderr
    assert run(server, "files").returncode == 2
    assert [record["FUSE_GATED_PATH"] for record in records(server, kind="refused")][-1] == "/closed/f"


def test_large_files_take_little_memory(server: Server, export: Path) -> None:
    size = 120 * 2**20
    with open(export / "large", "wb") as file:
        file.truncate(size)
    command = [sys.executable, "-m", "fuse_gated.commands.fuse_gatectl", "--runtime", str(server.runtime), "files"]
    with subprocess.Popen([*command, "cat", "acme/work:large"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        total, memory = 0, ""
        while data := process.stdout.read(2**20):
            total += len(data)
            if total > size - 8 * 2**20 and not memory:
                # The most that it has had; it still has more to write than a pipe takes.
                memory = re.findall(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())[0]
    assert (total, process.returncode) == (size, 0)
    assert int(memory) * 1024 < 80 * 2**20


def test_whoever_reads_may_stop(server: Server, export: Path) -> None:
    (export / "long").write_bytes(bytes(8 * 2**20))
    command = [sys.executable, "-m", "fuse_gated.commands.fuse_gatectl", "--runtime", str(server.runtime), "files", "cat"]
    with subprocess.Popen([*command, "acme/work:long"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
