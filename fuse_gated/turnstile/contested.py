"""Names that become other files' while programs open them.

open(2) is several requests: LOOKUP says which file a name stands for, OPEN opens that one. A program of the client may put
another file in its place in between. OPEN then fails with ESTALE, and the kernel looks the path up anew, but only once (Linux,
do_filp_open()): a second ESTALE reaches the program, to which no local filesystem says that. So once it has happened the name is
*contested* for that process, for a while: what it looks up by it the client opens at once, and that is *held* for the OPEN that
follows, whatever becomes of the name meanwhile.

What is held counts as closed here and still open at the client (tree/handles.py), so no successor leaves it open.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from fuse_gated import operations
from fuse_gated.gate import sandbox
from fuse_gated.paths import join, split
from fuse_gated.turnstile import knowing
from fuse_gated.turnstile.call import Call, Failure
from fuse_gated.turnstile.effects import Keep
from fuse_gated.wire import messages
from fuse_gated.wire.session import Pending

if TYPE_CHECKING:
    from fuse_gated.turnstile.desk import Desk

CONTESTED: Final = 5.0
"""Seconds after an ESTALE for which a name is taken to be contested."""
HELD: Final = 1.0
"""Seconds for which what was looked up by such a name is kept open."""
MOST_CONTESTED: Final = 1024
MOST_HELD: Final = 256
EVERYBODY: Final = -1
"""In a process's place."""

_DIRECTORY: Final = -1
"""In the place of open(2)'s flags: it is opened by opendir(3)."""
_ACCMODE: Final = 0o3
_EXEC: Final = 0x20
_NEVER: Final = (0.0, 0)
_OPENED: Final = {0o100000: 0, 0o040000: _DIRECTORY}
"""By file type: how it is opened by whoever has not said."""


class Contested:
    """Of one session: the names, by whom they are, and where these processes are on their way."""

    def __init__(self) -> None:
        self._names: dict[tuple[bytes, int], tuple[float, int]] = {}
        """Until when each is contested, and how it is opened; the first to end comes first."""
        self._walks: dict[int, bytes] = {}
        """What a process has looked up last."""

    def __bool__(self) -> bool:
        return bool(self._names)

    def add(self, now: float, path: bytes, pid: int = EVERYBODY, flags: int = 0) -> None:
        """This name was another file's than it was looked up as."""
        self._names.pop((path, pid), None)
        while self._names and (next(iter(self._names.values()))[0] <= now or len(self._names) >= MOST_CONTESTED):
            del self._names[next(iter(self._names))]
        self._names[path, pid] = (now + CONTESTED, flags)

    def flags(self, now: float, path: bytes, pid: int) -> int | None:
        """How the process opens it; None: it is not contested."""
        until, flags = self._names.get((path, pid), _NEVER)
        return flags if until > now else None

    def covers(self, now: float, path: bytes, pid: int) -> bool:
        """Whether what that process opens by this name had better be opened at the client at once."""
        return bool(self._names) and any(self.flags(now, path, who) is not None for who in (pid, EVERYBODY))

    def looked_up(self, now: float, path: bytes, pid: int) -> None:
        """That process has been told what is there."""
        if next(reversed(self._names.values()))[0] <= now:
            self._names.clear()
            self._walks.clear()
            return
        if len(self._walks) >= MOST_CONTESTED:
            self._walks.clear()
        self._walks[pid] = path

    def is_on_its_way(self, path: bytes, pid: int) -> bool:
        """Whether the process has come to this path by its name, and not from inside."""
        last = self._walks.get(pid)
        return last is not None and path in (last, split(last)[0])


def failed(t: "Desk", call: Call) -> None:
    """A request is answered with ESTALE: the kernel looks its path up once more."""
    request = call.request
    if isinstance(request, operations.Lookup):
        directory = t.inodes.get(request.parent) if isinstance(request.parent, int) else None
        if directory is not None:
            t.contested.add(t.now, join(t.inodes.path(directory), request.name), call.caller.pid)
        return
    number = getattr(request, "node", b"")
    node = t.inodes.get(number) if isinstance(number, int) else None
    if node is None or node.parent is None or node.identity is None:
        return
    flags = _OPENED.get(node.identity[2])
    if isinstance(request, operations.Open):
        flags = request.flags & (_ACCMODE | _EXEC)
    if flags is not None:
        t.contested.add(t.now, t.inodes.path(node), call.caller.pid, flags)


def place_of(t: "Desk", call: Call, directory: operations.Node) -> bytes | None:
    """Where a directory lay that another one has taken the place of since this very process looked it up: on its way along a path
    it is to find what the path says now. None for any other, and for who works in that directory and has not looked it up."""
    node = t.inodes.get(directory) if isinstance(directory, int) else None
    if node is None or node.parent is None:
        return None
    path, gone = t.inodes.where(node)
    return path if gone == "ESTALE" and t.contested.is_on_its_way(path, call.caller.pid) else None


def opens(
    t: "Desk",
    call: Call,
    path: bytes,
    answered: Callable[[messages.OpenedFile, bool], None],
    missing: Callable[[str], None],
    instead: Callable[[], None],
) -> bool:
    """Have the client open what is being looked up, if its name is contested: `answered` is told what, and whether it is a
    directory. Where it cannot be opened, it is `instead` looked up like any other."""
    flags = t.contested.flags(t.now, path, call.caller.pid)
    if flags is None or t.outage is not None:
        return False
    directory = flags == _DIRECTORY
    most = t.gate.tenant.limits.open_files
    if most is not None and len(t.handles) + len(t.handles.held) + t.session.count("open", "create", "opendir") >= most:
        return False
    if (t.gate.list(path) if directory else t.gate.open(path, flags)).errno is not None:
        return False

    def opened(result: messages.OpenedFile) -> None:
        sandbox.check_handle(result.handle)
        sandbox.check_attributes(result.attributes)
        t.ledger.leftovers.over(number)
        if not t.goes_on(call):
            t.close(result.handle, directory=directory)
            return
        knowing.learnt(t, messages.Getattr(path), result.attributes, since)
        try:
            answered(result, directory)
        except Failure as failure:
            t.close(result.handle, directory=directory)
            t.fail(call, failure.errno)

    def not_opened(errno: str) -> None:
        if not t.goes_on(call):
            return
        if errno == "EISDIR" and not directory:
            t.contested.add(t.now, path, call.caller.pid, _DIRECTORY)
            if opens(t, call, path, answered, missing, instead):
                return
        try:
            if errno == "ENOENT":
                missing(errno)
            else:
                instead()
        except Failure as failure:
            t.fail(call, failure.errno)

    since = t.cache.tick
    t.wait(call)
    # Under a number of its own: should this process end, its successor looks the name up without opening it.
    number = t.session.lasting_id(t.handles.reserve())
    # For reading, whatever is to come: who holds a file for writing keeps others from executing it (ETXTBSY).
    arguments = messages.Opendir(path) if directory else messages.Open(path, messages.OPEN_READ)
    pending = Pending(number, arguments, t.now + t.limits.deadline, opened, not_opened)
    t.ledger.leftovers.may_be_done(pending)
    t.effects.append(Keep(t.ledger.rows()))
    t.session.ask(pending)
    return True


def hold(t: "Desk", node: int, result: messages.OpenedFile, *, directory: bool) -> None:
    """The kernel is about to be told that the name is this node's, and the client has it open."""
    if len(t.handles.held) >= MOST_HELD:
        _let_go(t, next(iter(t.handles.held)))
    t.handles.hold(result.handle, directory=directory, node=node, until=t.now + HELD)


def not_held(t: "Desk") -> list[int]:
    """What is to be given back to a client that is there again. What a process before this one held is held on: the kernel may be
    about to open it."""
    for number, releasing in t.handles.releasing.items():
        if releasing.node:
            t.handles.held[number] = t.now + HELD
    return [number for number in t.handles.releasing if number not in t.handles.held]


def look_after(t: "Desk") -> None:
    """To be called when the first of what is held may be due."""
    if t.outage is not None:
        # A successor has it.
        t.handles.held.clear()
    while t.handles.held and t.handles.due <= t.now:
        _let_go(t, next(iter(t.handles.held)))


def _let_go(t: "Desk", number: int) -> None:
    """Nobody has opened it."""
    remote, directory, _owners, _node = t.handles.releasing[number]
    t.handles.released(number)
    t.close(remote, directory=directory)
