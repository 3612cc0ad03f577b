"""What `fuse-gatectl doctor` finds: one line a check, with what to do next."""

from typing import Final

import msgspec

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"


class Check(msgspec.Struct, frozen=True):
    """`state` is ok, warn or fail; `advice` says what to do where it is not ok."""

    name: str
    state: str
    message: str
    advice: str = ""


def ok(name: str, message: str) -> Check:
    return Check(name, OK, message)


def warn(name: str, message: str, advice: str) -> Check:
    return Check(name, WARN, message, advice)


def fail(name: str, message: str, advice: str) -> Check:
    return Check(name, FAIL, message, advice)


def worse(*, fatal: bool) -> str:
    """The state of what is missing: fatal or only a pity."""
    return FAIL if fatal else WARN
