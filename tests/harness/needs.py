"""What a test needs of the machine. Where it is missing the test is skipped, and under CI=true it fails."""

import os
import shutil
from collections.abc import Callable
from typing import Final

import pytest

MEASURING: Final = "FUSE_GATED_TEST_COVERAGE" in os.environ
"""Whether this is `make coverage` (tests/measuring), where everything is slower and workers have no cage."""

_CHECKS: Final[dict[str, Callable[[], bool]]] = {
    "root": lambda: os.geteuid() == 0,
    "not root": lambda: os.geteuid() != 0,
    "fuse": lambda: os.access("/dev/fuse", os.R_OK | os.W_OK),
    "a mount by an ordinary user": lambda: os.path.exists("/dev/fuse") and os.stat("/dev/fuse").st_mode & 0o006 == 0o006,
}


def need(*things: str) -> None:
    """Each of `things` is 'root', 'not root', 'fuse' (a /dev/fuse that we may open), 'a mount by an ordinary user' (one that
    everybody may open; see namespace.py) or the name of a program."""
    missing = [thing for thing in things if not _CHECKS.get(thing, lambda name=thing: shutil.which(name) is not None)()]
    need_that(not missing, f"this machine lacks: {', '.join(missing)}")


def need_cage() -> None:
    """Skip where workers have none: under `make coverage`, because who is caged cannot write what was measured."""
    if MEASURING:
        pytest.skip("measured workers have no cage")


def need_that(holds: object, reason: str) -> None:
    """Skip the test for `reason` unless `holds`; fail it where CI=true, because there nothing may go untested unseen."""
    if holds:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"cannot be tested here, and CI=true: {reason}", pytrace=False)
    pytest.skip(reason)
