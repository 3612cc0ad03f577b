"""The quick start's commands, run as they stand."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import need, need_that
from harness.leftovers import MARK, clear_away
from harness.ports import port_of, reserve

TOP = Path(__file__).parents[2]
PORT = "7433"


def programs(directory: Path) -> Path:
    """The three programs of this checkout, by their names."""
    directory.mkdir()
    for name in ("fuse-gated", "fuse-gate", "fuse-gatectl"):
        program = directory / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fuse_gated.commands.{name.replace("-", "_")} "$@"\n')
        program.chmod(0o755)
    return directory


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that others may walk to, as those of `tmp_path` may not be."""
    directory = Path(tempfile.mkdtemp(prefix="fuse-gated-docs-")).resolve()
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def test_the_commands_do_what_is_said(quick_start: Any, open_path: Path) -> None:
    need("root", "fuse", "sha256sum")
    need_that(not Path("/run/systemd/journal/socket").exists(), "with journald the audit would be looked for in its unit")
    script = "".join(block.body for block in quick_start.blocks if block.info == "shell run")
    assert script.count(PORT) == 2
    path = f"{programs(open_path / 'bin')}:{os.environ['PATH']}"
    mark = os.urandom(8).hex()
    place = reserve()
    process = subprocess.Popen(
        ["sh", "-c", script.replace(PORT, str(port_of(place)))],
        env={**os.environ, "TMPDIR": str(open_path), "PATH": path, "PYTHONPATH": str(TOP), MARK: mark},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    try:
        said, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        said, _ = process.communicate()
        pytest.fail(f"it did not end:\n{said}")
    finally:
        left = clear_away(mark, open_path)
        place.close()
    logs = "".join(log.read_text() for log in open_path.glob("*/*.log"))
    assert process.returncode == 0, f"{said}\n{logs}"
    assert not left
    assert "main.c\n" in said
    assert ".env\n" not in said
    assert "/* from the server */" in said
    assert "No such file or directory" in said
    assert "Permission denied" in said
    assert "denied: create /.git/hooks (tenant acme)" in said
    assert "acme" in said
    assert ": whole: records 1.." in said
    assert "Traceback" not in said + logs
