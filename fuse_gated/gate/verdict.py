"""Permissions, rules and verdicts: the words in which the gate decides."""

from typing import Final

import msgspec

READ: Final = 1
WRITE: Final = 2
EXECUTE: Final = 4
DELETE: Final = 8
ALL: Final = 15
PERMISSIONS: Final = {"read": READ, "write": WRITE, "execute": EXECUTE, "delete": DELETE}


class Rule(msgspec.Struct, frozen=True):
    """One rule of a tenant's policy. `path` is a pattern with a leading slash; `allow` and `deny` are permission bits.
    `place` is 'policy.yaml:12' for people."""

    path: str
    allow: int = 0
    deny: int = 0
    hide: bool = False
    place: str = ""


class Verdict(msgspec.Struct, frozen=True, gc=False):
    """The gate's answer. `errno` by name is None when the operation may go on; `rule` is the rule that decided ('' when
    none matched); `reason` is for people."""

    errno: str | None = None
    rule: str = ""
    reason: str = ""

    @property
    def allowed(self) -> bool:
        return self.errno is None


ALLOWED: Final = Verdict()
