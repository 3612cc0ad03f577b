"""Errors for people: what happened, whose fault it was, and what to do next.

Every error that may reach a person derives from `GateError`. Its class says whose fault it was (operator, peer, kernel),
its `hint` says what to do next, and its `exit_status` is the one that the commands promise (0 done, 1 failed, 2 usage,
3 refused by the server, 4 configuration at fault).

Errnos travel by name, not by number, because numbers differ by architecture (errno(3)).
"""

import errno
from typing import ClassVar


class GateError(Exception):
    """Something that a person must hear of."""

    fault: ClassVar[str] = "fuse-gated"
    exit_status: ClassVar[int] = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class OperatorError(GateError):
    """The machine or the command line is not as it must be: a port that is taken, no /dev/fuse, a directory not ours."""

    fault = "operator"


class UsageError(OperatorError):
    """The command line asks for something that makes no sense."""

    exit_status = 2


class ConfigurationError(OperatorError):
    """A file in /etc/fuse-gated is at fault. `faults` lists every one found, each with its place."""

    exit_status = 4

    def __init__(self, message: str, hint: str = "", faults: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint)
        self.faults = faults


class RefusedError(GateError):
    """The server said no: login, policy or a limit."""

    fault = "peer"
    exit_status = 3


class PeerError(GateError):
    """The other side could not be reached, or broke off."""

    fault = "peer"


class ProtocolError(PeerError):
    """The other side sent what the protocol does not allow; the connection is closed with `close_code` (RFC 6455, 7.4)."""

    def __init__(self, message: str, close_code: int = 1002) -> None:
        super().__init__(message)
        self.close_code = close_code


class KernelError(GateError):
    """The kernel refused something that we need."""

    fault = "kernel"


def errno_name(number: int) -> str:
    """The name of an errno of this machine, such as 'ENOENT'; 'EIO' for a number that has none."""
    return _NAMES.get(number, "EIO")


def errno_number(name: str) -> int:
    """This machine's number for an errno's name; EIO's for a name that this machine does not know."""
    return _NUMBERS.get(name, errno.EIO)


_NUMBERS: dict[str, int] = {name: number for name, number in vars(errno).items() if isinstance(number, int)}
# Where a number has two names, the one that Linux's man pages use travels.
_NAMES: dict[int, str] = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP", errno.EAGAIN: "EAGAIN", errno.EDEADLK: "EDEADLK"}
