"""A whole worker, visited by a stranger. Its other neighbours, the daemon and the kernel, are played by hand."""

import contextlib
import os
import socket
import struct
import threading

from connections import MOST_TURNS, message, said, send, turn
from sans_io import RULES
from seeds import HELLO, UPGRADE

from fuse_gated import supervision
from fuse_gated.config.settings import Settings
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.fuse_answers import OUT_HEADER
from fuse_gated.edge.fuse_requests import IN_HEADER
from fuse_gated.edge.journal import Journal
from fuse_gated.edge.loop import Loop
from fuse_gated.edge.memory import make_memory, make_state
from fuse_gated.edge.notifying import Notifier
from fuse_gated.gate.audit import Fields
from fuse_gated.gate.shares import SIZE
from fuse_gated.gate.tenant import Identity, Outage, Tenant
from fuse_gated.worker import Visitor, Worker

_TENANT = Tenant(name="acme", rules=RULES, audit="everything", outage=Outage(grace=0.0))
_IDENTITY = Identity(owner_uid=0, owner_gid=0, anyone=True)
_INIT = struct.pack("=IIII48x", 7, 45, 0, 0xFFFFFFFF)
_KERNEL_ASKS = (
    (1, b"f\0"), (3, bytes(16)), (27, bytes(8)), (17, b""), (35, struct.pack("=IIII", 2, 0o644, 0, 0) + b"new\0"),
    (22, struct.pack("=II", 100, 0) + b"user.x\0"), (45, struct.pack("=QII", 1, 0, 0) + b"a\0b\0"),
    (28, struct.pack("=QQIIQII", 1, 0, 4096, 0, 0, 0, 0)), (5, b""),
)  # fmt: skip


class _Kept(Journal):
    """Takes every record, and knows them afterwards."""

    pollable = False

    def __init__(self) -> None:
        self.records: list[Fields] = []

    def write(self, fields: Fields) -> bool:
        self.records.append(fields)
        return True

    def fileno(self) -> int:
        return -1

    def reconnect(self, descriptor: int) -> None:
        os.close(descriptor)

    def close(self) -> None:
        self.records.clear()


class _Visit:
    def __init__(self) -> None:
        self.loop = Loop()
        self.notifier = Notifier()
        self.journal = _Kept()
        self.stranger, ours = socket.socketpair()
        ours.setblocking(False)
        self.stranger.setblocking(False)
        self.channel, daemon = Channel.pair(supervision.FROM_DAEMON, supervision.FROM_WORKER)
        self.daemon = daemon
        self.kernel, self.fuse = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.setblocking(False)
        self.mounted = False
        self.descriptor: int | None = None
        """The worker's of the mount, which in a process of its own would end with it."""
        visitor = Visitor("visit", "192.0.2.1")
        self.worker = Worker(self.loop, ours, self.channel, self.journal, self.notifier, visitor, Settings())

    def run(self, stage: int, rest: bytes) -> None:
        if stage:
            send(self.stranger, UPGRADE)
            self.turns(6)
        if stage >= 2:
            send(self.stranger, message(HELLO, masked=True))
            for _ in range(MOST_TURNS):
                self.turns(1)
                if self.mounted:
                    break
            assert self.mounted, "a proper login did not come to a mount"
        send(self.stranger, said(stage, rest, masked=True))
        self.turns(4)
        self.stranger.close()
        for _ in range(MOST_TURNS):
            self.turns(1)
            if self.worker.ending:
                break
        assert self.worker.ending, "the stranger is gone, and the worker has not noticed"
        # A health check is none, so that it can be made every second.
        assert self.journal.records or self.worker.protocol.checked, "a visit that no record tells of"

    def turns(self, count: int) -> None:
        for _ in range(count):
            turn(self.loop)
            if self.worker.mounted is not None and self.worker.mounted.driver is not None:
                self.descriptor = self.worker.mounted.driver.fd
            self._be_daemon()
            self._be_kernel()

    def _be_daemon(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while (received := self.daemon.receive()) is not None:
                match received[0]:
                    case supervision.Login(token=token):
                        known = token == b"token"
                        self.daemon.send(
                            supervision.LoggedIn(_TENANT, _IDENTITY) if known else supervision.LoginRefused("nobody's token")
                        )
                    case supervision.Open():
                        state, shares = make_state(), make_memory("shares", SIZE)
                        self.daemon.send(supervision.Opened("/run/m", "kernel"), [self.fuse.fileno(), state, shares])
                        os.close(state)
                        os.close(shares)
                        self._ask(26, 0, _INIT)
                        for number, (opcode, body) in enumerate(_KERNEL_ASKS, 1):
                            self._ask(opcode, 2 * number, body)
                    case supervision.Ending():
                        self.daemon.send(supervision.Unmounted())

    def _ask(self, opcode: int, unique: int, body: bytes) -> None:
        self.kernel.send(IN_HEADER.pack(IN_HEADER.size + len(body), opcode, unique, 1, 0, 0, 9, 0, 0) + body)

    def _be_kernel(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while packet := self.kernel.recv(2**21):
                assert OUT_HEADER.unpack_from(packet)[0] == len(packet), "an answer whose length is not what it says"
                self.mounted = True

    def close(self) -> None:
        # What it still has to write must be written before the descriptor is another's.
        self.notifier.stop()
        for thread in threading.enumerate():
            if thread.name == "notify":
                thread.join()
        self.worker.socket.abort()
        if self.descriptor is not None:
            os.close(self.descriptor)
        for one in (self.stranger, self.channel, self.daemon, self.kernel, self.fuse, self.loop):
            one.close()


def server(data: bytes) -> None:
    """Whatever the stranger sends, the worker ends with a reason and a record, and raises nothing."""
    visit = _Visit()
    try:
        visit.run(data[0] % 4 if data else 0, data[1:])
    finally:
        visit.close()


TARGETS = {"server": server}
