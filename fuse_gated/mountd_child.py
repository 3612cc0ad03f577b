"""The mount keeper where there is no systemd: a child of the supervisor's (standalone.py), which plays systemd's part for it.

Over one channel the keeper gives the supervisor copies of what it holds, and the supervisor gives it the connection of each
new daemon. So a keeper that is killed is followed by one that goes on, as under systemd.
"""

import select
import signal
import socket
from collections.abc import Mapping
from typing import Final

import msgspec

from fuse_gated.edge.channel import Channel
from fuse_gated.edge.process import Signals
from fuse_gated.errors import PeerError
from fuse_gated.mountd import MountKeeper, allow_descriptors
from fuse_gated.mountd_serving import Attendance


class Keep(msgspec.Struct, frozen=True, tag="keep"):
    """Keeper: have the descriptor that comes with this."""

    name: str


class Drop(msgspec.Struct, frozen=True, tag="drop"):
    """Keeper: let it go."""

    name: str


class Arrived(msgspec.Struct, frozen=True, tag="arrived"):
    """Supervisor: a daemon was started; its connection comes with this."""


FROM_KEEPER: "Final[msgspec.msgpack.Decoder[Keep | Drop]]" = msgspec.msgpack.Decoder(Keep | Drop)
TO_KEEPER: "Final[msgspec.msgpack.Decoder[Arrived]]" = msgspec.msgpack.Decoder(Arrived)


class Supervisor:
    """The keeper's end of the channel to the supervisor. Once that has closed its own, nothing is kept any more."""

    def __init__(self, sock: socket.socket) -> None:
        self._channel = Channel(sock, TO_KEEPER, max_fds=1)

    def fileno(self) -> int:
        return self._channel.fileno()

    def keep(self, name: str, descriptor: int, /) -> None:
        self._tell(Keep(name), [descriptor])

    def drop(self, name: str, /) -> None:
        self._tell(Drop(name), [])

    def accept(self) -> socket.socket | None:
        try:
            received = self._channel.receive()
        except BlockingIOError:
            return None
        except PeerError:
            received = None
        if received is None or not received[1]:
            raise EOFError
        return socket.socket(fileno=received[1][0])

    def _tell(self, message: Keep | Drop, fds: list[int]) -> None:
        while True:
            try:
                self._channel.send(message, fds)
            except BlockingIOError:
                # It is reading, if not now: it never waits for us without having closed its end.
                poll = select.poll()
                poll.register(self._channel, select.POLLOUT)
                poll.poll()
            except PeerError:
                return
            else:
                return


def run(runtime: str, supervisor: socket.socket, connected: socket.socket | None, kept: Mapping[str, int]) -> int:
    """Serve the daemon that an earlier keeper has served, which is `connected`, and each one that comes in its place, until
    SIGTERM comes or no other daemon will; then unmount everything. `kept` is what an earlier keeper gave to keep.

    The exit status. Raises OperatorError when the runtime directory is not ours.
    """
    allow_descriptors()
    store = Supervisor(supervisor)
    with Signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        keeper = MountKeeper(runtime, store, kept)
        try:
            Attendance(keeper, store, signals, lambda _: None).run(connected, None)
        finally:
            keeper.close()
    return 0


__all__ = ["FROM_KEEPER", "TO_KEEPER", "Arrived", "Drop", "Keep", "Supervisor", "run"]
