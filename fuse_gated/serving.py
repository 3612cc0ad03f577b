"""A mounted session at work: carries out the turnstile's effects between the driver, the wire and the journal.

Effects are carried out in their order. When the journal does not take a record, everything behind it waits; after a second
the session is silenced: what was to be sent is not sent and fails with EIO, and so does every new request, until a record
goes through again. The loop never blocks on the journal.
"""

import select
from collections import deque
from collections.abc import Callable, Set
from functools import partial
from typing import Any, Final, Protocol

import msgspec

from fuse_gated.edge.fuse_network import FIRST as NETWORK
from fuse_gated.edge.fuse_network import NetworkDriver
from fuse_gated.edge.journal import Journal
from fuse_gated.edge.loop import Loop, Timer
from fuse_gated.edge.state import Full, State
from fuse_gated.edge.websocket import WebSocket
from fuse_gated.errors import ProtocolError
from fuse_gated.gate.audit import Chain, Fields, Record
from fuse_gated.operations import Answer as KernelAnswer
from fuse_gated.operations import Caller, Interrupt, Request
from fuse_gated.tree.journal import Row
from fuse_gated.turnstile import effects, knowing
from fuse_gated.turnstile.turnstile import Turnstile
from fuse_gated.wire.codec import Batch
from fuse_gated.wire.messages import Ask, Write

PATIENCE: Final = 1.0
"""Seconds without room for a record before the session is silenced."""

_IN_ORDER: Final = 0.5
"""Seconds that an answer waits until the kernel has forgotten what it is to forget before it. Whom it waits for there is answered
within a round trip; or by a client that hangs, for which not everybody is to wait."""

_RETRY: Final = 0.05
_SOON_ENOUGH: Final = 0.005
_COUNTED: Final = 0.25
"""Seconds until what has ended is counted at the latest."""
_CROWDED: Final = 16 * 2**20
_READS_A_TURN: Final = 16
_PATIENT: Final = frozenset({"release", "releasedir", "unwatch", "flush"})


class Driver(Protocol):
    """What serves the mount: the kernel's (edge/fuse_kernel.py) or libfuse's (edge/fuse_libfuse.py)."""

    fd: int
    on_raw: Callable[[int, bytes], None] | None
    on_answered: Callable[[int], None] | None

    @property
    def resent(self) -> Set[int]: ...
    def ready(self, events: int = 0, most: int = 16) -> bool: ...
    def answer(self, unique: int, answer: KernelAnswer) -> None: ...
    def answer_in_order(self, unique: int, answer: KernelAnswer) -> Callable[[], None] | None: ...
    def invalidate_inode(self, node: int, *, pages: bool, awaited: bool = False) -> None: ...
    def invalidate_entry(self, parent: int, name: bytes, *, expire: bool = False) -> None: ...


class Recorder:
    """Writes sealed records in order; what the journal does not take waits. `on_broken` is called, now and then, while the
    journal's descriptor is of no more use."""

    def __init__(
        self,
        loop: Loop,
        journal: Journal,
        chain: Chain,
        on_taken: Callable[[], None],
        on_broken: Callable[[], None] = lambda: None,
    ) -> None:
        self.chain = chain
        self.state: State | None = None
        """Where a successor finds the last record, should the journal not have it."""
        self.waiting: Fields | None = None
        self.since = 0.0
        self._loop = loop
        self._journal = journal
        self._on_taken = on_taken
        self._on_broken = on_broken
        self._complained = 0.0

    def write(self, record: Record) -> bool:
        """Whether the record was taken. If not, it is tried again, and `on_taken` is called when it was."""
        fields = self.chain.seal(record)
        if self.state is not None:
            self.state.sealed(self.chain.sequence, self.chain.head, self.chain.encoded)
        return self.write_sealed(fields)

    def write_sealed(self, fields: Fields) -> bool:
        """As `write`, for a record that was sealed before."""
        if self._journal.write(fields):
            self._taken()
            return True
        self.waiting = fields
        self.since = self._loop.now
        self._complain()
        self._loop.after(_RETRY, self._retry)
        return False

    def _retry(self) -> None:
        assert self.waiting is not None
        if self._journal.write(self.waiting):
            self.waiting = None
            self._taken()
            self._on_taken()
        else:
            self._complain()
            self._loop.after(_RETRY, self._retry)

    def _taken(self) -> None:
        if self.state is not None:
            self.state.taken(self.chain.sequence)

    def _complain(self) -> None:
        if self._journal.broken and self._loop.now - self._complained >= PATIENCE:
            self._complained = self._loop.now
            self._on_broken()


class Serving:
    """One mounted session. `on_violation` is called when the client broke the protocol, `on_full` with the reason when there is
    no room for what a successor must know."""

    def __init__(
        self,
        loop: Loop,
        turnstile: Turnstile,
        socket: WebSocket | None,
        recorder: Recorder,
        on_violation: Callable[[ProtocolError], None],
        state: State | None = None,
        on_full: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        self.turnstile = turnstile
        if state is not None:
            turnstile.ahead.room, turnstile.ahead.read_back = state.ring, state.get
        self.silenced = False
        self._loop = loop
        self._socket = socket
        self._state = state
        self._recorder = recorder
        self._on_violation = on_violation
        self._on_full = on_full
        self._driver: Driver | None = None
        self._network: NetworkDriver | None = None
        """Serves what is attached to the session beside its mount, or in its place."""
        self._batch = Batch()
        self._flush_is_due = False
        self._late_flush: Timer | None = None
        self._backlog: deque[effects.Effect] = deque()
        self._timer: Timer | None = None

    @property
    def behind(self) -> bool:
        """Whether anything waits for the journal."""
        return bool(self._backlog)

    def attach(self, driver: Driver) -> None:
        """Serve this mount from now on."""
        self._driver = driver
        self._loop.watch(driver.fd, partial(self._driver_ready, driver))

    def attach_network(self, network: NetworkDriver) -> None:
        """Serve what is attached to the session too."""
        self._network = network
        self._loop.watch(network.fd, partial(self._driver_ready, network))

    def detach(self) -> None:
        """Leave the mount alone."""
        if self._driver is not None:
            self._loop.forget(self._driver.fd)
            self._driver = None
        if self._network is not None:
            self._loop.forget(self._network.fd)
            self._network.close()
            self._network = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def suspend(self) -> None:
        """The client is away: nothing is sent any more."""
        self._socket = None
        self.turnstile.suspend(self._loop.now)
        self.carry_out()
        if self._state is not None and not self._backlog:
            self._keep(self._state)

    def interrupt_again(self) -> None:
        """What a process before this one was told of signals, once its requests are here."""
        for number in list(self.turnstile.ledger.interrupted):
            self.turnstile.interrupt(self._loop.now, number)
        self.carry_out()

    def on_request(self, unique: int, caller: Caller, request: Request) -> None:
        """The driver's callback."""
        turnstile = self.turnstile
        if type(request) is Interrupt and self._state is not None:
            row = turnstile.ledger.is_interrupted(request.unique)
            if row is not None:
                self._state.commit([row])
        if self._driver is not None and unique in self._driver.resent:
            turnstile.ledger.before.add(unique)
        try:
            turnstile.request(self._loop.now, unique, caller, request)
        except ProtocolError as error:
            self._on_violation(error)
        self.carry_out()

    def on_message(self, data: bytes | bytearray | memoryview) -> None:
        """A message from the client, after its hello."""
        try:
            self.turnstile.received(self._loop.now, data)
        except ProtocolError as error:
            self.carry_out()
            self._on_violation(error)
        self.carry_out()

    def tell(self, record: Record) -> None:
        """A record about the session itself."""
        self.turnstile.note(record)
        self.carry_out()

    def keep_requests(self, driver: Driver) -> None:
        """Nobody sends what this driver reads again: a successor finds it in the state."""
        driver.on_raw, driver.on_answered = self._asked, self._settled

    def _asked(self, number: int, raw: bytes) -> None:
        if self._state is not None:
            self._commit((self.turnstile.ledger.is_asked(number, raw),))

    def _settled(self, number: int) -> None:
        row = self.turnstile.ledger.is_settled(number)
        if row is not None and self._state is not None:
            self._commit((row,))

    def carry_out(self) -> None:
        """Do what the turnstile wants done, as far as the journal lets us."""
        turnstile, recorder = self.turnstile, self._recorder
        while wanted := turnstile.effects:
            turnstile.effects = []
            for effect in wanted:
                if recorder.waiting is not None:
                    self._put_off(effect)
                else:
                    _DO[type(effect)](self, effect)
        # A timer that is set comes soon enough for deadlines; what is held back, and the journal's patience, may end before.
        if self._timer is None or turnstile.holds or recorder.waiting is not None:
            self._set_timer()

    def on_record_taken(self) -> None:
        """The journal took the record that everything waited for."""
        untold, self.turnstile.untold = self.turnstile.untold, 0
        if untold:
            self.turnstile.note(Record(kind="audit-gap", count=untold, detail="as many operations failed with EIO meanwhile"))
        self.silenced = self.turnstile.silenced = self.turnstile.ahead.halted = False
        backlog, self._backlog = self._backlog, deque()
        self.turnstile.effects = [*backlog, *self.turnstile.effects]
        self.carry_out()

    def flush(self) -> None:
        """Send what this turn produced."""
        self._flush_is_due = False
        if self._late_flush is not None:
            self._late_flush.cancel()
            self._late_flush = None
        for message in self._batch.take():
            if self._socket is not None:
                self._socket.send_now(message)

    def _send(self, effect: effects.Send) -> None:
        frame = effect.frame
        if type(frame) is Ask and type(frame.arguments) is Write and (message := self._batch.take_with(frame)) is not None:
            if self._socket is not None:
                self._socket.send_parts(message)
            return
        self._batch.add(frame)
        if self._batch.is_long:
            self.flush()
            return
        if self._flush_is_due:
            return
        if effect.frame.id & 1 and (not isinstance(effect.frame, Ask) or effect.frame.operation in _PATIENT):
            # Our own request that nobody waits for: it goes with the next that somebody waits for.
            if self._late_flush is None:
                self._late_flush = self._loop.after(_SOON_ENOUGH, self.flush)
            return
        self._flush_is_due = True
        self._loop.soon(self.flush)

    def _keep(self, state: State) -> None:
        """What no answer has told a successor, such as FORGET's."""
        if self.turnstile.ledger.changed:
            self._commit(self.turnstile.ledger.rows())
        if not self.turnstile.ahead:
            state.clear_ring()
        if state.bloated:
            try:
                state.compact()
            except Full as error:
                self._full(error)

    def _commit(self, rows: tuple[Row, ...]) -> None:
        if self._state is not None:
            try:
                self._state.commit(rows)
            except Full as error:
                self._full(error)

    def _full(self, error: Full) -> None:
        """No successor could go on with it: it ends here, in order."""
        self._state = None
        self.turnstile.ahead.room = 0
        self._on_full(str(error))

    def _hold(self, effect: effects.Hold) -> None:
        if self._state is not None:
            self._state.put(effect.at, effect.data)

    def _keep_rows(self, effect: effects.Keep) -> None:
        self._commit(effect.rows)

    def _answer(self, effect: effects.Answer) -> None:
        if effect.rows and self._state is not None:
            self._commit(effect.rows)
        if effect.request >= NETWORK:
            if self._network is not None:
                self._network.answer(effect.request, effect.answer)
        elif self._driver is not None:
            if effect.in_order:
                hurry = self._driver.answer_in_order(effect.request, effect.answer)
                if hurry is not None:
                    self._loop.after(_IN_ORDER, hurry)
            else:
                self._driver.answer(effect.request, effect.answer)

    def _tell(self, effect: effects.Tell) -> None:
        self._recorder.write(effect.record)

    def _invalidate_entry(self, effect: effects.InvalidateEntry) -> None:
        if self._driver is not None:
            self._driver.invalidate_entry(effect.parent, effect.name, expire=effect.expire)

    def _invalidate_inode(self, effect: effects.InvalidateInode) -> None:
        if self._driver is not None:
            self._driver.invalidate_inode(effect.node, pages=effect.pages, awaited=effect.awaited)

    def _close(self, effect: effects.Close) -> None:
        if self._socket is not None:
            self._socket.close(effect.code, effect.reason)

    def _put_off(self, effect: effects.Effect) -> None:
        """The journal does not take records. Within its patience everything waits in order; after that nothing is sent,
        and what was not sent fails."""
        self.turnstile.ahead.halted = True
        if not self.silenced and self._loop.now < self._recorder.since + PATIENCE:
            self._backlog.append(_kept(effect))
            return
        if not self.silenced:
            self._silence()
        self._do_silenced(effect)

    def _silence(self) -> None:
        self.silenced = self.turnstile.silenced = True
        backlog, self._backlog = self._backlog, deque()
        for effect in backlog:
            self._do_silenced(effect)

    def _do_silenced(self, effect: effects.Effect) -> None:
        if isinstance(effect, effects.Tell):
            self._backlog.append(effect)
        elif not isinstance(effect, effects.Send):
            _DO[type(effect)](self, effect)
        elif not isinstance(effect.frame, Ask) or not self.turnstile.withdraw(effect.frame.id):
            self._backlog.append(effect)

    def read_again(self) -> None:
        """Read what the last process had read, as far as there is room for it."""
        while self._driver is not None and not self._is_crowded and self._driver.ready(0, _READS_A_TURN):
            pass
        knowing.all_sent_again(self.turnstile)
        self.carry_out()

    @property
    def _is_crowded(self) -> bool:
        turnstile = self.turnstile
        crowded = (self._socket is not None and self._socket.queued > _CROWDED) or turnstile.session.crowded
        # What a successor would have to be told has room for so much; the kernel has room for more.
        return crowded or turnstile.ledger.asked_bytes > turnstile.limits.max_bytes_in_flight

    def _driver_ready(self, driver: Driver | NetworkDriver, events: int) -> None:
        if self._is_crowded and not events & (select.EPOLLERR | select.EPOLLHUP):
            # The client does not keep up: the kernel keeps what it has until there is room.
            self._loop.change(driver.fd, read=False)
            self._loop.after(_RETRY, lambda: self._resume(driver))
        else:
            # A caller who is alone sends the next request when this one is answered: to look for it now would be in vain.
            driver.ready(events, _READS_A_TURN if self.turnstile.busy else 1)

    def _resume(self, driver: Driver | NetworkDriver) -> None:
        if driver in (self._driver, self._network):
            self._loop.change(driver.fd)

    def _set_timer(self) -> None:
        due = self.turnstile.next_due(self._loop.now)
        if due is None and self.turnstile.measures.ends:
            due = self._loop.now + _COUNTED
        if self._recorder.waiting is not None and not self.silenced:
            patience = self._recorder.since + PATIENCE
            due = patience if due is None else min(due, patience)
        timer = self._timer
        if due is None or (timer is not None and timer.callback is not None and timer.when <= due + 0.001):
            return
        if timer is not None:
            timer.cancel()
        self._timer = self._loop.at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._loop.now
        if self._state is not None and not self._backlog:
            self._keep(self._state)
        if self._recorder.waiting is not None and not self.silenced and now >= self._recorder.since + PATIENCE:
            self._silence()
        try:
            self.turnstile.tick(now)
        except ProtocolError as error:
            self._on_violation(error)
        self.carry_out()


_DO: Final[dict[type[effects.Effect], Callable[[Serving, Any], None]]] = {
    effects.Send: Serving._send,
    effects.Hold: Serving._hold,
    effects.Keep: Serving._keep_rows,
    effects.Answer: Serving._answer,
    effects.Tell: Serving._tell,
    effects.InvalidateEntry: Serving._invalidate_entry,
    effects.InvalidateInode: Serving._invalidate_inode,
    effects.Close: Serving._close,
}


def _kept(effect: effects.Effect) -> effects.Effect:
    """An effect that outlives the driver's buffer."""
    if isinstance(effect, effects.Send) and isinstance(effect.frame, Ask):
        arguments = effect.frame.arguments
        if isinstance(arguments, Write):
            copied = msgspec.structs.replace(arguments, data=memoryview(bytes(arguments.data)))
            return effects.Send(msgspec.structs.replace(effect.frame, arguments=copied))
    if isinstance(effect, effects.Hold):
        return effects.Hold(effect.at, bytes(effect.data))
    return effect
