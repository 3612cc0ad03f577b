"""How the daemon gets mounts: it asks the mount keeper, and is told by callback. The daemon itself never waits."""

import contextlib
import os
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from fuse_gated.edge import keeping
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.loop import Loop
from fuse_gated.errors import PeerError
from fuse_gated.gate.gate import Gate

OnAnswer = Callable[[keeping.FromKeeper, list[int]], None]


class Found(NamedTuple):
    """A mount that an earlier daemon left. Both descriptors are the receiver's."""

    held: keeping.Held
    device: int
    state: int


class Mounter:
    """The daemon's end of the channel to the mount keeper. `on_lost` is called when the keeper is gone for good."""

    def __init__(self, loop: Loop, channel: Channel[keeping.FromKeeper], on_lost: Callable[[], None]) -> None:
        self._loop = loop
        self._channel = channel
        self._on_lost = on_lost
        self._waiting: dict[int, _Asked] = {}
        self._unsent: deque[_Asked] = deque()
        """For which there was no room: when a thousand sessions end at once, each is still to be unmounted."""
        self._next = 1
        self._notes: dict[tuple[str, str], bytes] = {}
        """Those that are still to be sent, the newest of each mount."""
        self._noting = False
        """One is on its way."""
        self.alive = True
        loop.watch(channel.fileno(), self._ready)

    def mount(self, gate: Gate, export: str, then: OnAnswer) -> None:
        """Mount an export of the gate's tenant; `then` gets Mounted with the device and the state, or Refused."""
        tenant, identity = gate.tenant, gate.identity
        self._ask(
            keeping.Mount,
            then,
            tenant=tenant.name,
            export=export,
            default_permissions=tenant.ownership == "passthrough",
            noexec=not gate.any_execute,
            nosymfollow=tenant.symlinks == "deny",
            uids=identity.uids,
            gids=identity.gids,
            anyone=identity.anyone,
        )

    def unmount(self, tenant: str, export: str, then: OnAnswer) -> None:
        """`then` gets Done, or Refused."""
        self._notes.pop((tenant, export), None)
        self._ask(keeping.Unmount, then, tenant=tenant, export=export)

    def place(self, gate: Gate, export: str, then: OnAnswer) -> None:
        """A directory for a copy of the export, where its mount would be, which is ours; `then` gets Placed with its descriptor
        and that of one beside it, or Refused."""
        identity = gate.identity
        self._ask(
            keeping.Place,
            then,
            tenant=gate.tenant.name,
            export=export,
            owner=os.geteuid(),
            uids=identity.uids,
            gids=identity.gids,
            anyone=identity.anyone,
        )

    def displace(self, tenant: str, export: str, aside: str, then: OnAnswer) -> None:
        """`then` gets Done, or Refused."""
        self._ask(keeping.Displace, then, tenant=tenant, export=export, aside=aside)

    def note(self, tenant: str, export: str, data: bytes) -> None:
        """What whoever `fetch`es the mount is to find: at most keeping.MAX_NOTE bytes. The newest counts, and is sent as soon as
        there is room for it."""
        self._notes[tenant, export] = data
        self._send_note()

    def fetch(self, then: Callable[[list[Found]], None]) -> None:
        """All mounts that an earlier daemon has left, in the order in which it made them. For the start: while anything is
        unmounted the order changes. Where the keeper is lost, `then` gets none."""
        self._fetch([], then)

    def apply(self, gate: Gate, exports: list[str]) -> None:
        """A new policy: who may enter the tenant's mounts, and whether anything on them may be executed."""
        identity = gate.identity
        self._ask(
            keeping.Access,
            _nothing,
            tenant=gate.tenant.name,
            uids=identity.uids,
            gids=identity.gids,
            anyone=identity.anyone,
        )
        for export in exports:
            self._ask(keeping.Remount, _nothing, tenant=gate.tenant.name, export=export, noexec=not gate.any_execute)

    def _fetch(self, found: list[Found], then: Callable[[list[Found]], None]) -> None:
        def answered(answer: keeping.FromKeeper, fds: list[int]) -> None:
            if isinstance(answer, keeping.Held) and len(fds) == _FDS:
                found.append(Found(answer, *fds))
                self._fetch(found, then)
                return
            for fd in fds:
                os.close(fd)
            if not isinstance(answer, keeping.Done):
                for lost in found:
                    os.close(lost.device)
                    os.close(lost.state)
                found.clear()
            then(found)

        self._ask(keeping.Fetch, answered, index=len(found))

    def _send_note(self) -> None:
        """One at a time: many at once would take the room that other requests need."""
        if self._noting or not self._notes or self._unsent:
            return
        tenant, export = next(iter(self._notes))
        fields = {"tenant": tenant, "export": export, "data": self._notes[tenant, export]}
        with contextlib.suppress(BlockingIOError):
            if not self._send(_Asked(keeping.Note, self._noted, fields)):
                del self._notes[tenant, export]
                self._noting = True

    def _noted(self, _answer: keeping.FromKeeper, _fds: list[int]) -> None:
        self._noting = False

    def _ask(self, kind: Callable[..., Any], then: OnAnswer, **fields: Any) -> None:
        self._unsent.append(_Asked(kind, then, fields))
        if len(self._unsent) == 1:
            self._send_on()

    def _send_on(self) -> None:
        """What there is room for, in its order. Where there is none, an answer is still to come, and makes some."""
        while self._unsent:
            asked = self._unsent[0]
            try:
                fault = self._send(asked)
            except BlockingIOError:
                return
            self._unsent.popleft()
            if fault:
                asked.then(keeping.Refused(id=0, reason=fault), [])

    def _send(self, asked: "_Asked") -> str:
        """Why it cannot be sent; '' if it was. Raises BlockingIOError where there is no room now."""
        try:
            self._channel.send(asked.kind(id=self._next, **asked.fields))
        except PeerError as error:
            return f"the mount keeper does not answer: {error}"
        self._waiting[self._next] = asked
        self._next += 1
        return ""

    def _ready(self, _events: int) -> None:
        try:
            received = self._channel.receive()
        except BlockingIOError:
            return
        except PeerError:
            received = None
        if received is None:
            self.alive = False
            self._loop.forget(self._channel.fileno())
            for number, asked in list(self._waiting.items()):
                asked.then(keeping.Refused(id=number, reason="the mount keeper is gone"), [])
            self._waiting.clear()
            self._send_on()
            self._on_lost()
            return
        answer, fds = received
        if isinstance(answer, keeping.Resumed):
            # Answers come in the order of the requests: what this one overtakes is lost.
            last = self._next
            self._ask(keeping.Sync, lambda _answer, _fds: self._repeat(last), tenant="")
            return
        asked = self._waiting.pop(answer.id, _NOBODY)
        asked.then(answer, fds)
        self._send_on()
        # A note for which there was no room, or that came while another one was on its way.
        self._send_note()

    def _repeat(self, before: int) -> None:
        """Ask again what was asked before that number and never answered: a keeper that was killed has read it."""
        for number in [number for number in self._waiting if number < before]:
            lost = self._waiting.pop(number)
            then = lost.then
            if lost.kind is keeping.Sync:
                continue
            if lost.kind is keeping.Mount:
                # It may have been mounted, and its descriptor was lost with the answer: from the beginning.
                self._ask(keeping.Unmount, _nothing, tenant=lost.fields["tenant"], export=lost.fields["export"])
            elif lost.kind in (keeping.Unmount, keeping.Displace):
                # It may have been done, and is refused now because nothing is mounted.
                then = _done_by(lost.then)
            self._ask(lost.kind, then, **lost.fields)


class _Asked(NamedTuple):
    """A request that waits for its answer."""

    kind: Callable[..., Any]
    then: OnAnswer
    fields: dict[str, Any]


def _done_by(then: OnAnswer) -> OnAnswer:
    return lambda answer, fds: then(keeping.Done(id=answer.id), fds)


def _nothing(_answer: keeping.FromKeeper, fds: list[int]) -> None:
    """What came of it shows in the mount itself; there is nobody to tell."""
    for fd in fds:
        os.close(fd)


_FDS: Final = 2
"""Descriptors with a mount: the device, and the state."""
_NOBODY: Final = _Asked(keeping.Sync, _nothing, {})
