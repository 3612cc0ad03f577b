"""One request on its way through the turnstile."""

from typing import Any

from fuse_gated.operations import Caller, Request, Setlk


class Failure(Exception):
    """A request ends with this errno (a name)."""

    def __init__(self, errno: str) -> None:
        super().__init__(errno)
        self.errno = errno


class Call:
    """A request of the kernel that has not been answered yet. `told` says that an audit record announced it, so that its
    failure must be told as well. `deadline` is set when the client is first asked, and holds for all that it is asked."""

    __slots__ = (
        "asked", "back", "before", "caller", "deadline", "id", "interrupted", "limited_as", "new_path", "operation", "path",
        "pause", "request", "spent", "started", "told", "usec", "verdict", "waited", "waits",
    )  # fmt: skip

    def __init__(self, number: int, caller: Caller, request: Request, operation: str, started: float) -> None:
        self.id = number
        self.caller = caller
        self.request = request
        self.operation = operation
        self.started = started
        self.deadline: float | None = None
        self.path: bytes | None = None
        self.new_path: bytes | None = None
        self.told = False
        self.interrupted = False
        self.before = False
        """Whether a process before this one had it: the client may have been asked, under its number."""
        self.limited_as = ""
        """The limiter's class, while the limiter holds it back."""
        self.pause = 0.0
        """Seconds that its refusal, which was told, still has to wait."""
        self.verdict = ""
        """The errno of a refusal that waits for its turn."""
        self.waits = False
        """Whether it waits for something else that the client was asked (lazily.py, gathering.py)."""
        self.waited = False
        """Whether it has waited for what was gathered, or owed when it came, and is to do without it now."""
        # For measures.py: when it was last given to the connection, its reply was back, and how many microseconds the client says
        # it needed. And what most never have: the seconds before that, (held, remote, of that the client's own).
        self.asked = self.back = 0.0
        self.usec = 0
        self.spent: tuple[float, float, float] | None = None


def waits_for_lock(request: Request) -> bool:
    """Whether it takes as long as another keeps the lock."""
    return isinstance(request, Setlk) and request.wait


def ignored(_outcome: Any) -> None:
    """Nobody waits for it."""
