"""The audit's file, looked after by an administrator: rotated away under live sessions, and on a disk that is full."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import Server, Stage, outcome
from harness.mounting import tmpfs
from harness.program import ROOT_OF_PROJECT
from harness.waiting import records, told, until


def verified(*files: Path) -> "subprocess.CompletedProcess[str]":
    named = [argument for file in files for argument in ("--file", str(file))]
    return subprocess.run(
        [sys.executable, "-m", "fuse_gated.commands.fuse_gatectl", "audit", "--verify", *named],
        env={**os.environ, "PYTHONPATH": str(ROOT_OF_PROJECT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def made(server: Server) -> list[str]:
    """The directories that the file tells of, in its order."""
    return [record["FUSE_GATED_PATH"] for record in records(server, operation="mkdir")]


def test_a_file_that_is_rotated_away_is_left_at_a_reload(own_stage: Stage) -> None:
    """No session notices, no record is lost, and the chain goes on from one file to the other."""
    server = own_stage.server(own_stage.tenant(exports={"max_sessions": 4}))
    first, second = own_stage.mount(server=server, name="first"), own_stage.mount(server=server, name="second")
    for mounted in (first, second):
        os.mkdir(mounted.path / "before")
    file, rotated = server.runtime / "audit.jsonl", server.runtime / "audit.jsonl.1"
    file.rename(rotated)
    os.mkdir(first.path / "between")
    assert not file.exists(), "until it is told, it goes on writing to the file that it has"
    server.reload(said="policy applied")
    assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (65534, 0o600)
    until(lambda: len(records(server, kind="policy-applied")) == 2, "both have left the old file")
    for mounted in (first, second):
        os.mkdir(mounted.path / "after")
    late = own_stage.mount(server=server, name="late")
    os.mkdir(late.path / "late")
    assert made(server) == ["/after", "/after", "/late"]
    for mounted in (first, second, late):
        mounted.client.stop()
    until(lambda: len(records(server, kind="session-closed")) == 3, "all is told")
    done = verified(rotated, file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("whole: records 1..") == 3
    # Alone, the later one lacks the beginnings.
    alone = verified(file)
    assert "the file was rotated, see audit.jsonl.1" in alone.stdout + alone.stderr


@pytest.mark.expected_log("not opened again")
def test_a_file_that_cannot_be_opened_again_is_not_left(own_stage: Stage) -> None:
    mounted = own_stage.mount()
    file = mounted.server.runtime / "audit.jsonl"
    file.rename(file.with_suffix(".1"))
    file.symlink_to("/etc/passwd")
    size = mounted.server.program.stderr.size()
    mounted.server.program.send(signal.SIGHUP)
    mounted.server.program.stderr.wait_for("the audit file was not opened again", mounted.server.program.process, size)
    os.mkdir(mounted.path / "d")
    assert '"/d"' in file.with_suffix(".1").read_text()
    file.unlink()
    file.with_suffix(".1").rename(file)
    assert told(mounted.server)


def test_a_full_disk_is_told_to_the_operator(own_stage: Stage) -> None:
    """Where the file lies, why nothing can be written, what that means and what to do: once, not for each operation."""
    directory = own_stage.directory / "audit"
    directory.mkdir()
    with tmpfs(directory, "size=64k,mode=0755"):
        file = directory / "log"
        server = own_stage.server(settings={"audit": {"to": "file", "file": str(file)}})
        mounted = own_stage.mount(server=server)
        ballast = directory / "ballast"
        with open(ballast, "wb", buffering=0) as filling:
            while outcome(filling.write, bytes(1024)) == "ok":
                pass
        until(lambda: outcome(os.mkdir, mounted.path / f"d{os.urandom(4).hex()}") == "EIO", "it is refused")
        said = server.program.stderr.wait_for("cannot be written", server.program.process)
        assert re.search(
            f"audit records of acme/work, and perhaps of others, cannot be written to {re.escape(str(file))}"
            r" \(.*\): what they would tell of fails with EIO until they can; make room where it lies",
            said,
        )
        for _ in range(3):
            assert outcome(os.listdir, mounted.path) == "EIO"
        ballast.unlink()
        until(lambda: outcome(os.listdir, mounted.path) == "ok", "there is room again")
        assert server.program.stderr.text().count("cannot be written") == 1
        mounted.client.stop()
        server.stop()
