"""A mounted session in the process that serves it: with its client, without it while that is away, or on its way to another.

A session outlives its processes. All that the next one must know is in the session's state (edge/state.py); what the kernel has
asked and nobody has answered it sends again. So there is one way for all: whoever serves the session stops reading, another
process gets the device and the state, and goes on. The state says how far the last one came.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable
from typing import Final, Protocol

import msgspec

from fuse_gated import supervision
from fuse_gated.config.settings import Settings
from fuse_gated.edge.fuse_kernel import KernelDriver, Negotiated
from fuse_gated.edge.fuse_libfuse import LibfuseDriver
from fuse_gated.edge.fuse_network import NetworkDriver, NoMount
from fuse_gated.edge.keeping import STATE_SIZE
from fuse_gated.edge.loop import Loop, Timer
from fuse_gated.edge.notifying import Notifier
from fuse_gated.edge.state import Full, State
from fuse_gated.edge.websocket import WebSocket
from fuse_gated.errors import ProtocolError
from fuse_gated.gate.admission import may_attach
from fuse_gated.gate.audit import SEALED, Chain, Fields, Record
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.limiter import Limiter
from fuse_gated.gate.shares import Shares
from fuse_gated.gate.tenant import Identity, Tenant
from fuse_gated.operations import Caller
from fuse_gated.pulse import Pulse
from fuse_gated.serving import Recorder, Serving
from fuse_gated.turnstile import elsewhere, leasing
from fuse_gated.turnstile.closing import tell_closed
from fuse_gated.turnstile.measures import Measures
from fuse_gated.turnstile.memory import acquaint
from fuse_gated.turnstile.turnstile import Limits, Turnstile
from fuse_gated.wire import codec
from fuse_gated.wire.messages import AFTER, LEASES, MAX_MESSAGE, WATCHES, Offer, Terms, Welcome

_LOOK_AGAIN: Final = 0.1


class About(msgspec.Struct, kw_only=True):
    """What the state says of the session itself. `policy` is a digest of the one that it was judged by last."""

    offer: Offer
    driver: str
    path: str
    policy: bytes = b""
    negotiated: Negotiated | None = None
    shown: str = ""
    """Where the client was last."""


class Host(Protocol):
    """The process that a session is served in. `end` ends it all, with a reason for the record."""

    loop: Loop
    settings: Settings
    recorder: Recorder
    notifier: Notifier
    shares: Shares | None

    def send(self, message: msgspec.Struct) -> None: ...
    def end(self, reason: str) -> None: ...
    def violated(self, error: ProtocolError) -> None: ...
    def unmounted(self) -> None: ...
    def opened(self) -> None: ...


class Mounted:
    """One session. `begin` serves a new mount, `go_on` one that another process has served before."""

    def __init__(self, host: Host, session: str, tenant: Tenant, identity: Identity, socket: WebSocket | None) -> None:
        self.session = session
        self.tenant = tenant
        self.about: About
        self.serving: Serving
        self.driver: KernelDriver | LibfuseDriver | NoMount | None = None
        self.yielded = False
        self._network: NetworkDriver | None = None
        self._host = host
        self._loop = host.loop
        self._identity = identity
        self._socket = socket
        self._secret = b""
        self._state: State
        self._grace: Timer | None = None
        self._lost_at = 0.0

    # The beginning.

    def begin(self, device: int, state: int, about: About) -> None:
        """Serve a mount that was just made. The client is welcomed once the kernel has begun to use it."""
        self._secret = os.urandom(32)
        self.about = about
        # Secrets are not for others to keep.
        self.about.offer = msgspec.structs.replace(about.offer, token=None, resume=None)
        self._prepare(state)
        self.about.policy = _digest(self.tenant, self._identity)
        self._describe()
        # One chain a session, from the connection's first record on; only the names become known here.
        chain = self._host.recorder.chain
        self._host.recorder.chain = Chain(
            self.tenant.name, self.session, about.offer.export, sequence=chain.sequence, head=chain.head
        )
        self._host.recorder.state = self._state
        self.driver = self._make_driver(device, None)
        self.serving.attach(self.driver)
        self.tell("session-opened", f"from {about.shown}, {about.driver} driver, {about.offer.program[:80]}")

    def go_on(self, device: int, state: int, secret: bytes, detail: str, shown: str) -> None:
        """Serve it where the last process stopped. `secret` is what the client has shown, if it is there again.

        Raises anything for a state that says nothing that can be gone on with: it may be of anyone's making.
        """
        self._secret = secret
        memory = State(state, STATE_SIZE, lambda: self.serving.turnstile.ledger.everything())
        self.about = msgspec.msgpack.decode(memory.about, type=About)
        self._prepare(state, memory)
        rows = memory.rows()
        self.serving.turnstile.restore(rows, memory.next_epoch())
        self._go_on_telling(memory)
        if shown:
            self.about.shown = shown
        self._describe()
        driver = self.driver = self._make_driver(device, self.about.negotiated)
        # Before anything is carried out: what the kernel is to forget must reach it.
        self.serving.attach(driver)
        if self.about.policy != _digest(self.tenant, self._identity):
            self.serving.turnstile.forget_all()
        elif self.tenant.cache.mode != "strict" and self._socket is not None:
            # What the last process counted on, nobody has watched since.
            self.serving.turnstile.forget_all_that_is_watched()
        if self._socket is None:
            now, lost_at = time.monotonic(), memory.lost_at
            self._lost_at = lost_at if 0.0 < lost_at < now else now
            self.tell("session-restored", detail)
            self._wait_for_client(detail)
        else:
            memory.lost_at = 0.0
            self._welcome(resumed=True)
            self.serving.turnstile.resume(self._loop.now)
            self.tell("session-resumed", detail)
        # The sockets of what was attached ended with the last process.
        elsewhere.release_orphans(self.serving.turnstile, self.about.driver)
        self.serving.carry_out()
        asked = dict(self.serving.turnstile.ledger.asked)
        if driver.keeps_requests:
            self._keep_requests(driver)
        if isinstance(driver, LibfuseDriver):
            driver.replay_left(asked)
        for raw in asked.values():
            driver.replay(raw)
        if isinstance(driver, KernelDriver):
            driver.replay_left(asked)
        self.serving.interrupt_again()
        driver.resend()
        self.serving.read_again()
        self._policy_is_applied()

    def _prepare(self, state: int, memory: State | None = None) -> None:
        settings, offer = self._host.settings, self.about.offer
        turnstile = Turnstile(
            Gate(self.tenant, self._identity, read_only="read-only" in offer.capabilities),
            Limiter(self.tenant.limits, self._loop.now, self._host.shares),
            Limits(
                deadline=settings.request_deadline,
                max_in_flight=settings.max_in_flight,
                max_bytes_in_flight=settings.max_bytes_in_flight,
                inodes=settings.inodes,
                refusals=settings.audit.refusals,
            ),
            export_root=offer.root,
            watches=WATCHES in offer.capabilities,
            orders=AFTER in offer.capabilities,
        )
        if LEASES in offer.capabilities:
            leasing.begin(turnstile)
        self._state = memory or State(state, STATE_SIZE, turnstile.ledger.everything)
        turnstile.measures = Measures(time.monotonic, self._state.measures, slow_after=settings.slow_operation or None)
        os.close(state)
        self.serving = Serving(
            self._loop, turnstile, self._socket, self._host.recorder, self._host.violated, self._state, self._host.end
        )

    def _go_on_telling(self, memory: State) -> None:
        """The chain goes on after the last record. The journal may not have that one: it is told again, as it was."""
        recorder = self._host.recorder
        last = memory.last_sealed()
        if last.fields is not None and not self._may_be_told(last.fields, last.sequence):
            raise ValueError("its last record is not one of this session's")
        head = last.head if last.sequence else b""
        recorder.chain = Chain(self.tenant.name, self.session, self.about.offer.export, sequence=last.sequence, head=head)
        recorder.state = memory
        if last.fields is not None:
            recorder.write_sealed([*last.fields, ("FUSE_GATED_CHAIN", last.head.hex().encode())])

    def _may_be_told(self, fields: Fields, sequence: int) -> bool:
        """Nothing that was left here may make us tell of others."""
        told = dict(fields)
        own = {"FUSE_GATED_TENANT": self.tenant.name, "FUSE_GATED_SESSION": self.session, "FUSE_GATED_SEQUENCE": str(sequence)}
        return len(told) == len(fields) and told.keys() <= set(SEALED) and all(
            told.get(name) == value.encode() for name, value in own.items()
        )

    def _describe(self) -> None:
        self._state.about = msgspec.msgpack.encode(self.about)

    def _make_driver(self, device: int, negotiated: Negotiated | None) -> KernelDriver | LibfuseDriver | NoMount:
        if self.about.driver in (NETWORK, LOCAL):
            return NoMount(device, self._loop, self._ready if negotiated is None else None)
        if self.about.driver == "libfuse":
            return LibfuseDriver(device, self._loop, self.serving.on_request, self._ready, self._gone, negotiated)
        return KernelDriver(
            device, self._host.notifier, self.serving.on_request, self._ready, self._gone, negotiated, self._host.settings.without
        )

    def _keep_requests(self, driver: KernelDriver | LibfuseDriver | NoMount) -> None:
        """Nobody sends again what this driver reads: a successor finds it in the state."""
        self.serving.keep_requests(driver)
        if isinstance(driver, KernelDriver) and self._state.inbox is not None:
            driver.read_into(self._state.inbox)

    def _ready(self) -> None:
        """INIT is answered: the mount can be used."""
        assert self.driver is not None
        self.about.negotiated = self.driver.negotiated
        if self.driver.keeps_requests:
            self._keep_requests(self.driver)
        self._describe()
        self._host.send(supervision.Ready(hashlib.sha256(self._secret).hexdigest()))
        self._welcome(resumed=False)
        acquaint(self.serving.turnstile, self._loop.now)
        self.serving.carry_out()

    def _welcome(self, *, resumed: bool) -> None:
        assert self._socket is not None
        settings = self._host.settings
        self._socket.expect(MAX_MESSAGE)
        terms = Terms(
            session=self.session,
            resume=self._secret,
            mount=self.about.path,
            driver=self.about.driver,
            max_in_flight=settings.max_in_flight,
            max_bytes_in_flight=settings.max_bytes_in_flight,
            deadline=settings.request_deadline,
            resumed=resumed,
            grace=self.tenant.outage.grace,
        )
        self._socket.send(codec.encode(Welcome(terms)))
        self._host.opened()
        Pulse(self._loop, self._socket, self.lose)

    # Programs without a mount.

    def attach(self, fd: int, caller: Caller, gids: Iterable[int]) -> None:
        """Serve a program over this socket, which is ours from now on."""
        if self.yielded:
            os.close(fd)
            return
        if self.serving.turnstile.tells_opens:
            detail = "without a mount"
            self.serving.tell(
                Record(kind="operation", operation="attach", decision="allowed", uid=caller.uid, pid=caller.pid, detail=detail)
            )
        self._served_by_network().attach(fd, caller, gids)

    def refused(self, uid: int, pid: int) -> None:
        """Tell of a program that was not attached."""
        self._tell_refusal(uid, pid, "EACCES", "not one of the tenant's users", rule="users")

    def _served_by_network(self) -> NetworkDriver:
        if self._network is None:
            turnstile = self.serving.turnstile
            self._network = NetworkDriver(
                self._loop,
                self.serving.on_request,
                lambda request: elsewhere.changed(turnstile, request),
                lambda caller, reason: self._tell_refusal(caller.uid, caller.pid, "EPROTO", f"its socket is closed: {reason}"),
            )
            self.serving.attach_network(self._network)
        return self._network

    def _tell_refusal(self, uid: int, pid: int, errno: str, detail: str, rule: str = "") -> None:
        self.serving.tell(
            Record(
                kind="refused", operation="attach", decision="denied", rule=rule, errno=errno, uid=uid, pid=pid, detail=detail
            )
        )

    # Without the client.

    @property
    def idle(self) -> bool:
        """Whether every answer that was given has left."""
        return self.driver is None or self.driver.idle

    @property
    def away(self) -> bool:
        return self._socket is None

    def lose(self, reason: str) -> None:
        """The client is gone, and may come back. Ends the session where the policy gives it no time for that."""
        if self._socket is None or self.yielded:
            return
        socket, self._socket = self._socket, None
        socket.abort()
        if not self.tenant.outage.grace or self.about.negotiated is None:
            self._host.end(reason)
            return
        self._lost_at = time.monotonic()
        outage = self.tenant.outage
        self.tell("session-suspended", f"{reason}; programs {_MEET[outage.mode]}, for {outage.grace:g} s at most")
        self._wait_for_client(reason)

    def _wait_for_client(self, reason: str) -> None:
        self._state.lost_at = self._lost_at
        self.serving.suspend()
        self._host.send(supervision.Suspended(reason))
        self._set_grace()

    def _set_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
        left = self._lost_at + self.tenant.outage.grace - time.monotonic()
        self._grace = self._loop.after(max(0.0, left), self._grace_is_over)

    def _grace_is_over(self) -> None:
        self._host.end(f"the client did not come back within {self.tenant.outage.grace:g} s")

    def _tell_outage(self) -> None:
        """What was done without the client. Its waiting is no news."""
        outage = self.serving.turnstile.outage
        if outage is not None and (outage.failed or outage.stale):
            detail = f"{outage.failed} operations failed, {outage.stale} were answered with what was last known"
            self.serving.tell(Record(kind="outage-over", count=outage.failed + outage.stale, detail=detail))

    # The end.

    def hangs_up(self) -> None:
        """The connection is about to go, and with it what the client grants for as long as it is there."""
        leasing.leave(self.serving.turnstile)

    def yield_up(self) -> None:
        """Read no more, and leave everything to a successor. Nothing of it is ended."""
        if self.yielded:
            return
        self.yielded = True
        self._tell_outage()
        self.serving.detach()
        self.serving.turnstile.count_ended()
        self.driver = None
        if self._host.recorder.waiting is None and not self.serving.behind:
            # With what no row has told: how much was read and written.
            with contextlib.suppress(Full):
                self._state.compact()

    def let_go(self) -> None:
        """Leave the mount alone, as far as it was come to."""
        if self.driver is not None:
            self.serving.detach()
            self.driver = None

    def close(self) -> None:
        """The session is over: callers are answered, open files told."""
        turnstile = self.serving.turnstile
        if turnstile.outage is not None:
            # Who has waited until now fails now.
            turnstile.outage.failed += sum(not call.verdict for call in turnstile.calls)
        self._tell_outage()
        turnstile.lost(self._loop.now)
        for handle in turnstile.handles:
            if not handle.directory:
                tell_closed(turnstile, handle)
        self.serving.carry_out()
        turnstile.count_ended()

    def _gone(self) -> None:
        """The kernel says that the mount is gone: unmounted by us, or by the operator's hand."""
        self.serving.detach()
        self.driver = None
        self._host.unmounted()

    # What the operator says.

    def apply(self, tenant: Tenant, identity: Identity) -> None:
        """A new policy."""
        turnstile = self.serving.turnstile
        self.tenant, self._identity = tenant, identity
        turnstile.apply(self._loop.now, Gate(tenant, identity, read_only=turnstile.gate.read_only))
        if self._network is not None:
            self._network.keep(lambda caller, gids: may_attach(tenant, identity, caller.uid, gids) is None)
        if self.away:
            self._set_grace()
        self.tell("policy-applied", f"{len(tenant.rules)} rules")
        self._policy_is_applied()

    def _policy_is_applied(self) -> None:
        """A successor need not have the kernel forget anything, once this is written: so not before the kernel has forgotten."""
        if self.yielded:
            return
        if self._host.notifier.idle and not self.serving.behind:
            self.about.policy = _digest(self.tenant, self._identity)
            self._describe()
        else:
            self._loop.after(_LOOK_AGAIN, self._policy_is_applied)

    def tell(self, kind: str, detail: str) -> None:
        """A record about the session itself."""
        self.serving.tell(Record(kind=kind, detail=detail))


NETWORK: Final = "network"
"""The driver of a session that is not mounted,"""
LOCAL: Final = "local"
"""and of one in whose mount's place there is a copy (local_provider.py)."""
_MEET: Final = {
    "wait": "wait",
    "fail": "get EIO at once",
    "cached": "wait, or are answered with what was last known",
}


def _digest(tenant: Tenant, identity: Identity) -> bytes:
    return hashlib.sha256(msgspec.msgpack.encode((tenant, identity))).digest()
