"""The fuzzer's targets take their seeds, and what the fuzzer has found before. `make fuzz` goes on from there."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")
FOUND = sorted(FUZZ.parent.glob("found/*/*"))


@pytest.mark.parametrize(
    "target", ["server", "client", "framing", "hello", "from_server", "session", "kernel", "policy", "settings"]
)
def test_a_target_takes_its_seeds_and_what_was_found_before(target: str) -> None:
    # A process of its own: a target may bound what its process can do. As root it becomes nobody, so not tmp_path.
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o711)
        done = subprocess.run(
            [sys.executable, FUZZ, "--target", target, "--replay"], capture_output=True, text=True, check=False,
            env={**os.environ, "TMPDIR": scratch},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("no fault\n")
        assert not os.listdir(scratch)


def test_what_was_found_belongs_to_a_target() -> None:
    assert FOUND
    listed = subprocess.run([sys.executable, FUZZ, "--help"], capture_output=True, text=True, check=True).stdout
    for file in FOUND:
        assert f"| {file.parent.name}" in listed
