"""What is open: files and directories, by the handle that the kernel was given."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from fuse_gated.operations import Attributes
from fuse_gated.tree.draft import Draft
from fuse_gated.tree.inodes import Identity, Inodes, Node
from fuse_gated.tree.posix_locks import UNLOCK, PosixLocks


class Listed(Protocol):
    """One entry of a directory, as the client lists it."""

    @property
    def name(self) -> bytes: ...
    @property
    def inode(self) -> int: ...
    @property
    def type(self) -> int: ...
    @property
    def attributes(self) -> Attributes | None: ...


class Handle:
    """One open file or directory. `remote` is the client's handle, or negative for what is only open here, opened by what is
    known of it; the client is told once it is needed (turnstile/lazily.py). `generation` is that of the policy by which it was
    last judged; reads and writes are counted to be told once, when it is closed."""

    __slots__ = (
        "bytes_read", "bytes_written", "directory", "draft", "failed", "fills", "flags", "flock", "generation", "id",
        "identity", "inherited", "kept", "leased", "made", "node", "opened_at", "page", "page_start", "path", "pid", "pinned",
        "positions", "reads", "remote", "renewed", "request", "silent", "uid", "unflushed", "unheard", "waiting", "warns", "was",
        "writes",
    )  # fmt: skip

    def __init__(self, number: int, node: Node | None, path: bytes, remote: int, flags: int, *, directory: bool = False) -> None:
        self.id = number
        self.node = node
        self.path = path
        """Where it was opened; for judging, `Handles.path` follows renames."""
        self.remote = remote
        self.flags = flags
        self.directory = directory
        self.generation = 0
        self.opened_at = 0.0
        self.uid = 0
        self.pid = 0
        self.request = 0
        """Of what is only open here: the kernel's request that opened it."""
        self.reads = 0
        self.bytes_read = 0
        self.writes = 0
        self.bytes_written = 0
        self.unflushed = False
        self.silent = False
        """Whether the client has nothing to tell when it is closed, so that it need not be asked."""
        self.leased = 0
        """Bytes that the client has room for, of a file that nobody else on the client can open (turnstile/leasing.py)."""
        self.made: Attributes | None = None
        """Of a file that was created by opening it, and changed by nobody else since: what it is like by now."""
        self.draft: Draft | None = None
        """Of such a file, or one that was there and empty: what there is in it as well."""
        self.failed = ""
        """The errno of a write that was answered before it failed: each close is told, until an fsync has been."""
        self.unheard = False
        """Whether no close has told it yet."""
        self.warns = ""
        """The same for the next write, which is told once. It may be the rest of the same write(2), which the kernel then ends
        with what was done of it, and nobody hears."""
        self.page: tuple[Listed, ...] = ()
        """Of a directory: the entries last received, from cookie `page_start` on, so that what did not fit one READDIR is
        not asked for again. One page, so that a listing without end costs no memory."""
        self.page_start = -1
        self.positions: list[int] | None = None
        """Of a directory whose page is all of the listing, as it is known here: where each entry stands (tree/telldir.py)."""
        self.renewed = False
        """Of a directory: whether its page is to be used when it is read from the beginning."""
        self.pinned: tuple[Attributes, bytes] | None = None
        """Of a file that is only open here: what it was when it was opened."""
        self.was: tuple[Attributes, bytes | None] | None = None
        """Of what is only open here: what it was, and its content, where that is known and may not have become another. Should it
        be removed or replaced before the client could open it, nobody else can say."""
        self.identity: Identity | None = None
        """Which file that is, where it has no node that says so."""
        self.kept = -1
        """Since when (as Node.kept) what is read through it and kept by the kernel is what the client said; -1 where it keeps
        nothing of it."""
        self.fills = False
        """Of a directory: whether the kernel is putting together what it keeps of the listing."""
        self.flock: int | None = UNLOCK
        """What flock(2) it has: the type as fcntl(2) has it; None where only a process before this one knows."""
        self.inherited = False
        """Of what is only open here: the client may have opened it for a process before this one."""
        self.waiting: list[tuple[Callable[[], None], Callable[[str], None]]] = []
        """What is to be done when the client has opened it, or not (with an errno's name)."""

    def stands_beside(self, attributes: Attributes | None) -> None:
        """This is what its name stands for now; None: nobody knows. It is read from the client from now on."""
        self.pinned = None
        if self.was is None:
            return
        was = self.was[0]
        if attributes is None:
            self.was = (was, None)
        elif (attributes.device, attributes.inode) == (was.device, was.inode):
            is_same = (attributes.size, attributes.mtime) == (was.size, was.mtime)
            self.was = (attributes, self.was[1] if is_same else None)

    @property
    def place(self) -> int | bytes:
        """What POSIX locks are on: the node's number, or the path where the driver has none."""
        return self.node.id if self.node is not None else self.path


class Releasing(NamedTuple):
    """What the client has been told to close, and has not said that it has. `owners` are whose locks go with it."""

    remote: int
    directory: bool
    owners: tuple[int, ...] = ()
    node: int = 0
    """The node that it is held for, if it has not been told yet (turnstile/contested.py)."""


class Handles:
    """The open handles of one mount, and who holds POSIX locks through them."""

    def __init__(self, inodes: Inodes) -> None:
        self._inodes = inodes
        self._handles: dict[int, Handle] = {}
        self._next = 1
        self.locks = PosixLocks()
        self.releasing: dict[int, Releasing] = {}
        """What is closed here, and may still be open at the client, by the number that it had."""
        self.held: dict[int, float] = {}
        """Some of these that are not to be closed before then, because somebody may open them; the oldest first."""
        self.changed: set[int] = set()
        """Numbers of the handles that came or went since somebody emptied this (tree/journal.py)."""
        self.unopened = 0
        """How many are only open here."""

    def __len__(self) -> int:
        return len(self._handles)

    def __iter__(self) -> Iterator[Handle]:
        return iter(self._handles.values())

    @property
    def newest(self) -> int:
        """The number that the next handle gets; numbers are never used twice."""
        return self._next

    def get(self, number: int) -> Handle | None:
        return self._handles.get(number)

    def add(self, node: Node | None, path: bytes, remote: int | None, flags: int, *, directory: bool = False) -> Handle:
        """`remote` is None for what is only open here."""
        handle = Handle(self._next, node, path, -self._next if remote is None else remote, flags, directory=directory)
        self.unopened += remote is None
        self._handles[handle.id] = handle
        self._next += 1
        if node is not None:
            node.handles.append(handle.id)
        self.changed.add(handle.id)
        return handle

    def restore(self, handle: Handle) -> None:
        """One that was open before. Raises ValueError for a number that is there already."""
        if handle.id in self._handles:
            raise ValueError(f"handle {handle.id} is there twice")
        self.unopened += handle.remote < 0
        self._handles[handle.id] = handle
        self._next = max(self._next, handle.id + 1)
        handle.flock = None
        if handle.node is not None:
            handle.node.handles.append(handle.id)

    def opened(self, handle: Handle, remote: int) -> None:
        """The client has opened it too."""
        handle.remote, handle.was = remote, None
        self.unopened -= 1
        self.changed.add(handle.id)

    def never_again(self, number: int) -> None:
        """Numbers up to this one were given out before."""
        self._next = max(self._next, number + 1)

    def remove(self, number: int) -> Handle | None:
        handle = self._handles.pop(number, None)
        if handle is not None:
            self.changed.add(number)
            self.unopened -= handle.remote < 0
        if handle is not None and handle.node is not None:
            node = handle.node
            node.handles.remove(number)
            if not node.handles:
                # A flush that failed has left its locks here; with the last handle the client gives up every lock.
                self.locks.closed(node.id)
            self._inodes.collect(node)
        return handle

    def close(self, remote: int, *, directory: bool) -> int:
        """What the client has opened, and nobody here wants: the number by which `releasing` knows it."""
        number = self.reserve()
        self.releasing[number] = Releasing(remote, directory)
        return number

    def reserve(self) -> int:
        """A number that no handle gets, not even by a successor."""
        number = self._next
        self._next += 1
        self.changed.add(number)
        return number

    def hold(self, remote: int, *, directory: bool, node: int, until: float) -> None:
        """What the client has opened for whoever is about to open this node."""
        number = self.reserve()
        self.releasing[number] = Releasing(remote, directory, node=node)
        self.held[number] = until

    def held_on(self, node: Node, *, directory: bool) -> int | None:
        """The number of what is held for this node, if anything is."""
        return next((one for one in self.held if self.releasing[one][1::2] == (directory, node.id)), None)

    @property
    def due(self) -> float:
        """Until when the first is held; 0.0: none is."""
        return next(iter(self.held.values()), 0.0)

    def released(self, number: int) -> None:
        """The client has closed it, or somebody has opened what was held."""
        self.held.pop(number, None)
        if self.releasing.pop(number, None) is not None:
            self.changed.add(number)

    def path(self, handle: Handle) -> bytes:
        """Where the open file is now, as far as the mount's own renames go."""
        return handle.path if handle.node is None else self._inodes.path(handle.node)

    def on(self, node: Node, *, writable: bool = False) -> Handle | None:
        """A handle that is open on this very node, if there is one. A directory's counts only once its name is gone, and so does
        one that is only open here: until then the name will do."""
        for number in node.handles:
            handle = self._handles[number]
            if handle.directory or handle.remote < 0:
                if self._inodes.gone(node):
                    return handle
            elif not writable or handle.flags & 3:
                return handle
        return None
