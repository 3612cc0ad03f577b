"""What an operation's handler works with: the tree, the gate, the client to ask, the caller to answer, the audit to tell.

Whatever is to be done is appended to `effects`, in its order. The turnstile (turnstile.py) is this desk with its doors: what
comes in from the driver, the client, the clock and the operator.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

from fuse_gated import operations
from fuse_gated.errors import errno_number
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.limiter import Limiter
from fuse_gated.operations import Attributes, Failed
from fuse_gated.tree.cache import Cache
from fuse_gated.tree.handles import Handle, Releasing
from fuse_gated.tree.inodes import Node
from fuse_gated.turnstile import ahead, belated, contested, knowing, lazily
from fuse_gated.turnstile.bounds import LARGEST_SUM
from fuse_gated.turnstile.call import Call, Failure, ignored, waits_for_lock
from fuse_gated.turnstile.effects import Answer, InvalidateInode, Send
from fuse_gated.turnstile.ledger import Ledger
from fuse_gated.turnstile.limits import Limits
from fuse_gated.turnstile.naming import Naming
from fuse_gated.turnstile.outage import Outage
from fuse_gated.turnstile.owing import Owing
from fuse_gated.turnstile.prefetch import Prefetch
from fuse_gated.turnstile.readahead import Readahead
from fuse_gated.wire import messages
from fuse_gated.wire.messages import Arguments
from fuse_gated.wire.session import Pending, Session

_OPENING: Final = ("open", "create", "opendir")
_UNDECIDED: Final = frozenset({"EINTR", "ETIMEDOUT", "ENOTCONN"})


class Desk(Naming):
    """The state of one mounted session, and what handlers do with it."""

    def __init__(
        self, gate: Gate, limiter: Limiter, limits: Limits, *, export_root: bytes, watches: bool = False, orders: bool = False
    ) -> None:
        super().__init__(limits, gate.tenant.audit)
        self.gate = gate
        self.limiter = limiter
        self.export_root = export_root
        self.generation = 0
        """Of the policy: a handle that was judged by an older one is judged again."""
        self.passes_ownership = gate.tenant.ownership == "passthrough"
        self.session = Session(
            lambda frame: self.effects.append(Send(frame)),
            self._late,
            lambda notice: knowing.on_notice(self, notice),
            max_in_flight=limits.max_in_flight,
            max_bytes_in_flight=limits.max_bytes_in_flight,
        )
        self.session.on_room = lambda number: self.measures.has_room(number)
        self.moves: list[tuple[Call, Node, int]] = []
        """Directories that are being moved, and how deep they will lie (climbing.py)."""
        self.pages: dict[int, Handle] = {}
        """The open directories that keep a part of their listing, by their handles, the oldest first (listing.py)."""
        self._calls: dict[int, Call] = {}
        self._held: list[tuple[float, int, Call]] = []
        self.remembers = gate.tenant.outage.mode == "cached"
        """Whether nodes keep the attributes that the client told last."""
        self.outage: Outage | None = None
        """While the client is away."""
        self.sent_before: dict[int, Pending] = {}
        """What the client had been asked when it was lost."""
        self.ahead = Owing(limits.max_bytes_in_flight // 2, limits.max_in_flight // 2)
        """What callers were told to be written, and the client has not said so."""
        self.ahead.serves = orders
        self.ledger = Ledger(self.inodes, self.handles, self.ahead, self.unlocks)
        """What a successor must know."""
        self.watches = watches
        """Whether the client tells of changes, and answers GATHER."""
        self.cache = Cache(0)
        """What is known of the client's files (knowing.py)."""
        self.gathering: dict[bytes, list[Call]] = {}
        """What the client is being asked for ahead, and who waits for it (gathering.py)."""
        self.unwatched: dict[bytes, float] = {}
        """Directories that it cannot watch, and until when that is to be believed."""
        self.noticed = 0
        """Paths of which the message that is being taken has told."""
        self.missing: deque[tuple[float, bytes]] = deque()
        """Names of which the kernel remembers that they do not exist, and until when."""
        self.allowed: dict[tuple[bytes, int], tuple[tuple[int, ...], float]] = {}
        """What the client has allowed to be done with which path (attributes.access)."""
        self.filesystem_until = 0.0
        """Until when what it has said of its filesystem will do."""
        self.lingering: deque[tuple[float, Handle]] = deque()
        """What is only open here, and when the client is to open it (lazily.py)."""
        self.contested = contested.Contested()
        self._grace: deque[tuple[float, Call]] = deque()
        """Whose callers got a signal, and until when an answer still reaches them."""
        self.belated = belated.Belated()
        self.drafts: set[int] = set()
        """Open files of which what is written is known (drafting.py)."""
        self.prefetch = Prefetch()
        self.readahead = Readahead(min(LARGEST_SUM, limits.max_bytes_in_flight // 2))
        self.set_cache()

    @property
    def calls(self) -> Iterable[Call]:
        """Requests that are not answered yet."""
        return self._calls.values()

    def set_cache(self) -> None:
        """As the policy says now. What was kept is not any more."""
        cache = self.gate.tenant.cache
        self.cache.clear()
        self.cache.room = cache.size if self.watches and cache.mode != "strict" else 0
        self.prefetch.forget()
        self.allowed.clear()
        self.filesystem_until = 0.0

    def forget_all_that_is_watched(self, *, names: bool = True) -> None:
        """Nobody tells of changes any more."""
        knowing.expire_all(self, names=names)
        self.set_cache()
        self.gathering.clear()
        self.unwatched.clear()

    def saw(self, node: Node | None, attributes: Attributes) -> None:
        """What the client says of a file, to be remembered for when it is away."""
        if node is self.inodes.root:
            self.ledger.saw_root(attributes)
        elif node is not None:
            if self.remembers:
                node.attributes = attributes
            if node.handles:
                ahead.saw(self, node, attributes)

    # The client.

    def ask(
        self,
        call: Call,
        arguments: Arguments,
        answered: Callable[[Any], None],
        failed: Callable[[str], None] | None = None,
        size: int = 0,
    ) -> None:
        """Ask the client. `answered(result)` and `failed(errno)` may raise Failure; without `failed`, the client's errno is
        the caller's.

        Raises Failure(EINTR) where the caller was interrupted, and what it still was given is over. While the client is away,
        raises Waits for what cannot be answered without it.
        """
        if self.outage is not None:
            answered(self.outage.answer(arguments))
            return
        over = call.interrupted and call.deadline is not None and call.deadline <= self.now
        if over or (self.ledger.leftovers and self.session.known(call.id)):  # Or a process before this one gave it up.
            raise Failure("EINTR")
        if call.deadline is None:
            call.deadline = self.now + self.limits.deadline
        else:
            self.measures.asked_again(call)
        unopened = lazily.unopened_in(self, arguments) if self.handles.unopened else None
        if unopened is not None:
            lazily.ask(self, call, arguments, unopened, answered, failed, size)
            return
        if self.cache.room and knowing.answers(self, arguments, answered, failed):
            return
        since = self.cache.tick

        def on_answer(result: Any) -> None:
            call.back, call.usec = self.now, self.session.usec
            if self.cache.room:
                knowing.learnt(self, arguments, result, since)
            try:
                answered(result)
            except Failure as failure:
                self.fail(call, failure.errno)

        def on_failure(errno: str) -> None:
            call.back, call.usec = self.now, self.session.usec
            if self.cache.room:
                knowing.learnt(self, arguments, errno, since)
            try:
                if failed is not None:
                    failed(errno)
                else:
                    self.fail(call, errno)
            except Failure as failure:
                self.fail(call, failure.errno)

        pending = Pending(call.id, arguments, call.deadline, on_answer, on_failure, size)
        call.asked = self.measures.clock()
        self.session.ask(pending)
        if not pending.sent:
            self.measures.waits_for_room(call)

    def ask_aside(self, arguments: Arguments, ended: Callable[[Any], None] | None = None) -> None:
        """Ask the client for something that no caller waits for, such as RELEASE. Nothing happens while it is away. `ended` is
        called when it has answered, whatever it says."""
        if self.outage is not None:
            return
        deadline = self.now + self.limits.deadline
        self.session.ask(Pending(self.session.own_id(), arguments, deadline, ended or ignored, ended or ignored))

    def give_back(self, handle: Handle, owners: tuple[int, ...] = ()) -> None:
        """The client is to close what is closed here, and to free the locks of these owners: now, or when it is there again."""
        if handle.remote < 0:
            lazily.closed_here(self, handle)
            return
        self.handles.releasing[handle.id] = Releasing(handle.remote, handle.directory, owners)
        self._give_back(handle.id)

    def close(self, remote: int, *, directory: bool = False) -> None:
        """The client is to close what it has opened for nobody: now, or when it is there again."""
        self._give_back(self.handles.close(remote, directory=directory))

    def give_back_again(self) -> None:
        """What a process before this one has told the client to close, or may have had opened. Twice is EBADF, and harmless."""
        for number in contested.not_held(self):
            self._give_back(number)
        # The client may have opened some of them for a process that did not live to hear of it.
        self.lingering.extend((self.now, handle) for handle in self.handles if handle.remote < 0)
        for number in self.ledger.leftovers:
            arguments = self.ledger.leftovers.arguments(number)
            if arguments is None:
                self.ledger.leftovers.over(number)
            else:
                self.session.ask_for_nobody(Pending(number, arguments, self.now + self.limits.deadline, ignored, ignored))

    def _give_back(self, number: int) -> None:
        remote, directory, owners, _node = self.handles.releasing[number]
        for owner in owners:
            self.ask_aside(messages.Flush(remote, owner))
        arguments = messages.Releasedir(remote) if directory else messages.Release(remote)
        self.ask_aside(arguments, lambda _outcome: self.handles.released(number))

    def hold(self, call: Call, seconds: float) -> None:
        """Let the request come to its handler again after a while."""
        self.measures.keep(call)
        heapq.heappush(self._held, (self.now + seconds, call.id, call))

    def _late(self, pending: Pending, result: Any) -> None:
        """What succeeded although its caller had gone is given back."""
        arguments = pending.arguments
        if pending.operation in _OPENING:
            self.close(result.handle, directory=isinstance(arguments, messages.Opendir))
        elif isinstance(arguments, messages.Setlk):
            belated.came(self, arguments)

    # The caller.

    def again(self, call: Call) -> None:
        """Bring it to its handler once more (turnstile.py)."""

    def wait(self, call: Call) -> None:
        """It waits for something else that the client is asked (lazily.py, gathering.py, readahead.py), within its deadline."""
        call.waits = True
        self.measures.waits(call)
        if call.deadline is None:
            call.deadline = self.now + self.limits.deadline

    def goes_on(self, call: Call) -> bool:
        """That has come, or does not come. Whether anybody still waits for the call."""
        call.waits = False
        call.back, call.usec = self.now, self.session.usec
        return not self.is_answered(call)

    def is_answered(self, call: Call) -> bool:
        return self._calls.get(call.id) is not call

    def answer(self, call: Call, answer: operations.Answer, *, kept: bool = True, in_order: bool = False) -> None:
        """`kept`: whether a successor needs it to answer the same, should the request come again. `in_order`: effects.Answer."""
        if self._calls.pop(call.id, None) is None:
            return
        rows = self.ledger.rows(call.id, answer if kept else None) if self.ledger.changed else ()
        self.effects.append(Answer(call.id, answer, rows, in_order))
        if self.measures.ended(call, answer):
            where = self.measures.slow(call)
            if not waits_for_lock(call.request):
                self.tell_slow(call, call.path if call.path is not None else self.path_of(call.request), where)

    def fail(self, call: Call, errno: str) -> None:
        """Answer with an errno; where the operation was told, its failure is told too. A refusal is answered when its turn
        comes: so there are never more records of refusals than their rate allows, and none is left out."""
        if call.id not in self._calls:
            return
        if call.pause:
            call.verdict = errno
            self.hold(call, call.pause)
            call.pause = 0.0
            return
        if errno == "ENOSYS":
            # The kernel would never ask again, for the mount's life, and allow an OPEN or an ACCESS by itself.
            errno = "EOPNOTSUPP"
        elif errno == "ESTALE":
            contested.failed(self, call)
        self.statistics.failed += 1
        if call.told:
            detail = "the client may have carried it out" if errno in _UNDECIDED else ""
            self.tell(call, "failed", "failed", errno=errno, detail=detail)
        self.ledger.leftovers.add(self.session.known(call.id) or self.sent_before.get(call.id))
        self.answer(call, Failed(errno_number(errno)))

    def take_place(self, call: Call, path: bytes) -> None:
        """Raises Failure(EMFILE) where the policy allows no more open files and directories, with those that are being opened."""
        most = self.gate.tenant.limits.open_files
        if most is not None and len(self.handles) + self.session.count(*_OPENING) >= most:
            raise self.limited(call, "EMFILE", path, f"{most} files are open, as many as the policy allows")

    def answer_change(self, call: Call, answer: operations.Answer, siblings: list[int], *, contents: bool = False) -> None:
        """Answer an operation that changed a file. Its other names must not go on showing what the kernel has remembered:
        their attributes go before the answer; with `contents` their pages go too, which is awaited for a moment only, because
        who holds a page may wait for another answer of ours. Were it not awaited, a GETATTR of the other name that crosses it
        would be disregarded by the kernel, and a read(2) then end at the old size."""
        for sibling in siblings:
            self.effects.append(InvalidateInode(sibling, pages=False))
        if contents:
            for sibling in siblings:
                self.effects.append(InvalidateInode(sibling, awaited=True))
        self.answer(call, answer)
