"""While the client is away: who waits, who fails at once, and who is answered from what the client said last.

Whoever waits is answered by a successor, to whom the kernel sends the request again. So nothing of it is kept here, and its
handler has not been called: it is judged and told when it can be done. What can be answered without the client goes the usual
way through its handler and the gate, with the client's last words in place of its answer.
"""

from collections.abc import Callable
from typing import Any, Final

from fuse_gated import operations
from fuse_gated.operations import Attributes, Filesystem, Request
from fuse_gated.tree.journal import Known
from fuse_gated.wire import messages

ERRNO: Final = "EIO"
"""What callers get whom nobody can answer: as from a disk that does not answer."""
WOULD_WAIT: Final = "EAGAIN"
"""What they get who have said that they do not want to wait."""
_NONBLOCK: Final = 0o4000
_DIRECTORY: Final = 0o240000
"""O_DIRECTORY of open(2), as it is on any of the machines that Linux runs on."""
_FROM_MEMORY: Final = (operations.Getattr, operations.Lookup, operations.Access)
_NAMING_ATTRIBUTES: Final = (operations.Getxattr, operations.Setxattr, operations.Removexattr)


class Waits(Exception):
    """Nobody can answer that now."""


class Outage:
    """One absence of the client. `mode` is the policy's (gate/tenant.py). `known` is what the client said last, so that df(1)
    and a listing of what is above the mount do not hang. `remembered` finds a file's last attributes, by
    its path or by the client's handle, and `link` where a symbolic link of that path leads."""

    def __init__(
        self,
        mode: str,
        known: Known,
        remembered: Callable[[messages.Target], Attributes | None],
        link: Callable[[bytes], bytes | None],
    ) -> None:
        self.mode = mode
        self.knows: Callable[[Request], bool] = lambda _request: False
        """Whether a request's handler needs no client (stale.py)."""
        self.failed = 0
        """Requests that failed because nobody could answer."""
        self.stale = 0
        """Requests that were answered from what was remembered."""
        self._root = known.root
        self._filesystem = known.filesystem
        self._remembered = remembered
        self._link = link

    def may_be_answered(self, request: Request) -> bool:
        """Whether it is worth while to try."""
        if isinstance(request, operations.Statfs):
            return self._filesystem is not None
        if isinstance(request, _NAMING_ATTRIBUTES) and not request.name.startswith(b"user."):
            # Never served (attributes.py), and `ls -l` asks for them of a mount that it finds in a directory.
            return True
        if self.mode == "cached" and isinstance(request, _FROM_MEMORY):
            return True
        if self.knows(request):
            return True
        return isinstance(request, operations.Getattr) and request.node in (operations.ROOT, b"") and self._root is not None

    def is_unwilling(self, request: Request) -> bool:
        """Whether a request that nobody can answer is one whose caller does better with an error. df(1) opens what it is asked
        about, for automounters, and goes on without; opendir(3) does not, which says O_DIRECTORY."""
        return (
            isinstance(request, operations.Opendir)
            and request.node in (operations.ROOT, b"")
            and request.flags & (_NONBLOCK | _DIRECTORY) == _NONBLOCK
        )

    def answer(self, arguments: messages.Arguments) -> Any:
        """In place of the client's answer. Raises Waits where it never told."""
        found: Attributes | Filesystem | None = None
        if isinstance(arguments, messages.Readlink) and (target := self._link(arguments.path)) is not None:
            # Counted when it was found to be known.
            return target
        if isinstance(arguments, messages.Statfs):
            found = self._filesystem
        elif isinstance(arguments, messages.Getattr | messages.Access):
            found = self._root if arguments.target == b"" else self._remembered(arguments.target)
        if found is None:
            raise Waits
        self.stale += 1
        return None if isinstance(arguments, messages.Access) else found
