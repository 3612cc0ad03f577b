"""The process that runs libfuse for one session of an ordinary user's server.

The daemon forks it. It makes the mount point, mounts through fusermount, tells the daemon, and turns libfuse's callbacks into
requests to the worker. It decides nothing, and sees nothing of a client's but what the worker has checked. It ends, and takes
its mount away, when the worker or the daemon is gone, when it is told to (SIGTERM), and when somebody else has unmounted.
"""

import contextlib
import os
import select
import signal
import socket
import threading
import time
from typing import Any, Final

import msgspec

from fuse_gated.edge import hosting, libfuse, mounts, process
from fuse_gated.edge.asking import Asking
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.fuse_callbacks import Callbacks
from fuse_gated.edge.keeping import Mount
from fuse_gated.errors import OperatorError, PeerError

PROGRAM: Final = "fuse-gated-libfuse"
SUBTYPE: Final = "fuse-gated"
_MOUNTING: Final = 10.0
"""Seconds that fusermount has. A mount that is being made cannot be left to itself."""
_TRIES: Final = 10


class Order(msgspec.Struct, frozen=True):
    """What to mount, beneath the directory `mnt`, an absolute path without symbolic links. With `others`, the tenant's other
    users may enter too."""

    mnt: str
    mount: Mount
    others: bool

    @property
    def tenant(self) -> str:
        """The directory of the tenant's mounts, which says who may enter."""
        return os.path.join(self.mnt, self.mount.tenant)

    @property
    def point(self) -> str:
        return os.path.join(self.tenant, self.mount.export)


def run(channel_socket: socket.socket, requests: socket.socket, order: Order, daemon: int) -> int:
    """Mount and serve, in a process of its own that the daemon with that pid has forked; the exit status, 0 when nothing is
    left mounted. `channel_socket` leads to the daemon, `requests` to the worker."""
    # As the session's worker (worker_process.py): its part of the processors is its own.
    os.setsid()
    process.set_name(f"fg-{order.mount.export}")
    process.close_all_but({channel_socket.fileno(), requests.fileno()})
    with (
        process.Signals(signal.SIGTERM) as signals,
        Channel(channel_socket, msgspec.msgpack.Decoder(hosting.ToDaemon), max_fds=0) as channel,
    ):
        process.die_with_parent(daemon)
        return _Host(channel, requests, order, signals).run()


def clean_up(order: Order) -> int:
    """In a process of its own: take away what one that was killed has left; the exit status, 0 when nothing is left."""
    process.close_all_but(())
    return _clean(order)


def _clean(order: Order) -> int:
    said = libfuse.unmount(order.point)
    if said:
        process.tell(PROGRAM, f"{order.point} stays mounted: {said}")
        return 1
    libfuse.remove_point(order.mnt, order.mount.tenant, order.mount.export)
    return 0


def make_point(order: Order) -> None:
    """Make the mount point, and let in who may enter. Raises OSError, and OperatorError where others cannot be let in."""
    for _ in range(_TRIES):
        # The end of the tenant's last session may remove its directory at any moment.
        with contextlib.suppress(FileNotFoundError):
            with contextlib.suppress(FileExistsError):
                os.mkdir(order.tenant, mounts.MODE_CLOSED)
            set_entry(order)
            with contextlib.suppress(FileExistsError):
                os.mkdir(order.point, mounts.MODE_CLOSED)
            return
    raise FileNotFoundError(f"{order.tenant} vanishes each time that it is made")


def set_entry(order: Order) -> None:
    """Who may go through the tenant's directory. Raises OSError and OperatorError."""
    wanted = order.mount
    if not order.others:
        os.chmod(order.tenant, mounts.MODE_CLOSED)
    elif wanted.anyone:
        os.chmod(order.tenant, mounts.MODE_OPEN)
    else:
        mounts.set_entry(order.tenant, wanted.uids, wanted.gids)


def options(order: Order) -> dict[str, Any]:
    """fuse(8)'s options: nothing is remembered between two system calls, so that the gate is always asked."""
    wanted = order.mount
    return {
        "fsname": f"{wanted.tenant}:{wanted.export}",
        "subtype": SUBTYPE,
        "nosuid": True,
        "nodev": True,
        "noexec": wanted.noexec,
        "attr_timeout": 0,
        "entry_timeout": 0,
        "use_ino": True,
        "big_writes": True,
        "atomic_o_trunc": True,
        "default_permissions": wanted.default_permissions,
        "allow_other": order.others,
    }


class _Host:
    def __init__(self, channel: Channel[Any], requests: socket.socket, order: Order, signals: process.Signals) -> None:
        self._channel = channel
        self._order = order
        self._signals = signals
        self._asking = Asking(requests, libfuse.is_interrupted)
        self._callbacks = Callbacks(
            lambda request: self._asking.ask(libfuse.caller(), request),
            lambda request: self._asking.tell(libfuse.caller(), request),
            self._on_began,
        )
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._began = False
        self._ended = False
        """libfuse serves no longer, or could not mount."""
        self._deserted = False
        """The worker is gone."""

    def run(self) -> int:
        said = self._mount()
        if self._began and libfuse.is_mounted(self._order.point):
            self._tell(hosting.Mounted(self._order.point, said))
            self._wait()
        else:
            self._tell(hosting.Failed(said or "libfuse does not say why"))
        # libfuse leaves it so that it kills: a stderr that is gone must not keep us from taking the mount away.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        # Whoever waits in the mount is answered before it goes.
        self._asking.close()
        return _clean(self._order)

    def _mount(self) -> str:
        """Returns when it is mounted, or cannot be: what was said meanwhile, by fusermount for example."""
        try:
            make_point(self._order)
        except OSError as error:
            return f"{self._order.point}: {error.strerror}"
        except OperatorError as error:
            return str(error)
        saved, said = os.dup(2), os.memfd_create("stderr")
        os.dup2(said, 2)
        try:
            for work in (self._serve, self._receive):
                # Nobody waits for these threads: libfuse's may be in the kernel for as long as the mount is used.
                threading.Thread(target=work, daemon=True).start()
            self._wait_for_mount()
        finally:
            os.dup2(saved, 2)
            os.close(saved)
        with open(said, "rb") as told:
            told.seek(0)
            return told.read().decode("utf-8", "replace").strip()

    def _wait_for_mount(self) -> None:
        end = time.monotonic() + _MOUNTING
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while not (self._began or self._ended) and (left := end - time.monotonic()) > 0:
            poll.poll(left * 1000)
            self._woken()

    def _wait(self) -> None:
        """Until there is nothing more to serve."""
        poll = select.poll()
        for watched in (self._signals, self._channel, self._wake):
            poll.register(watched, select.POLLIN)
        while not (self._ended or self._deserted):
            ready = {fd for fd, _ in poll.poll()}
            # The daemon has nothing to say: what comes from there is its end.
            if signal.SIGTERM in self._signals.received() or self._channel.fileno() in ready:
                return
            self._woken()

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _serve(self) -> None:
        # That it could not mount shows in `_began`, and why, on stderr.
        with contextlib.suppress(RuntimeError):
            libfuse.serve(self._callbacks, self._order.point, options(self._order))
        self._ended = True
        os.eventfd_write(self._wake, 1)

    def _receive(self) -> None:
        self._asking.receive()
        self._deserted = True
        os.eventfd_write(self._wake, 1)

    def _on_began(self, max_write: int) -> None:
        with contextlib.suppress(OSError):
            self._asking.begin(libfuse.PROTOCOL_MINOR, max_write)
        self._began = True
        os.eventfd_write(self._wake, 1)

    def _tell(self, message: msgspec.Struct) -> None:
        with contextlib.suppress(PeerError, BlockingIOError):
            self._channel.send(message)
