"""The process that keeps the copy of one export, in the place of a mount that could not be made.

The daemon forks it. What it asks of the client goes over a socket to the session's worker, like any program's that is attached:
past the same gate, within the same limits, told to the same audit. It decides nothing but what replica/ says. While the client is
away programs go on in the copy, and what they have written waits. When it is killed, another one goes on with what it has noted.
"""

import contextlib
import os
import secrets
import select
import signal
import socket
import time
from typing import Final

import msgspec

from fuse_gated import local_end
from fuse_gated.edge import process
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.copy_tree import CopyTree
from fuse_gated.errors import PeerError
from fuse_gated.local_client import LocalClient, PatientAttached
from fuse_gated.local_ledger import LedgerFile, Unwritable
from fuse_gated.local_orders import ANOTHER, LEFT, TO_PROVIDER, UNSENT, Joined, Order, Over, Terms, ToProvider, Wanted
from fuse_gated.local_telling import Telling
from fuse_gated.local_watches import LocalWatches
from fuse_gated.paths import shown, split
from fuse_gated.replica.copying import Copy
from fuse_gated.replica.ledger import Book
from fuse_gated.replica.names import TOLD
from fuse_gated.replica.room import Room
from fuse_gated.replica.sides import Away, Refused
from fuse_gated.replica.version import DIRECTORY, FILE

PROGRAM: Final = "fuse-gated-local"
LOOK_EVERY: Final = 1.0
"""Seconds between two looks at everything, at least,"""
LOOK_SHARE: Final = 10
"""and so many times as long as one takes."""
SETTLE: Final = 0.1
"""Seconds in which a program that saves a file is done with its names."""
_AGAIN: Final = 1.0
"""Seconds after which a client that does not answer is asked again."""
_TRY_LATER: Final = 60.0
"""Seconds after which what a full disk did not take is tried again, and a disk that is full is told again."""
_RECHECK: Final = 5.0
_SPARE_NAMES: Final = 10_000


def run(channel_socket: socket.socket, order: Order, root: int, beside: int, daemon: int) -> int:
    """Keep the copy in `root`, in a process of its own that the daemon with that pid has forked; the exit status
    (local_orders.py)."""
    # As a worker (worker_process.py): its part of the processors is its own.
    os.setsid()
    process.set_name(f"fg-{order.shown.partition('/')[2]}")
    process.close_all_but({channel_socket.fileno(), root, beside})
    process.be_killed_first()
    # Modes are what they are asked to be; and who opens a file while it is looked at (fcntl(2), leases) is no news.
    os.umask(0)
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    with process.Signals(signal.SIGTERM) as signals, Channel(channel_socket, TO_PROVIDER, max_fds=1) as channel:
        provider = Provider(channel, order, root, beside, signals)
        # A call that waits for the client ends at once. (The signal itself is still written to where it is waited for.)
        signal.signal(signal.SIGTERM, lambda *_: provider.leave())
        process.die_with_parent(daemon)
        return provider.run()


class Provider:
    """One copy, and whom it is kept for."""

    def __init__(self, channel: "Channel[ToProvider]", order: Order, root: int, beside: int, signals: process.Signals) -> None:
        self._channel = channel
        self._order = order
        self._root = root
        self._signals = signals
        self._tree = CopyTree(root, beside)
        self._watches = LocalWatches(root)
        # Before anything is looked at: of who has a file open since before nobody knows.
        self._watches.watch([b""])
        self._tree.before_reading, self._tree.is_written = self._before_reading, self._is_written
        self._ledger = LedgerFile(beside)
        self._room = Room(order.size, order.files)
        self._client: LocalClient | None = None
        self._copy: Copy | None = None
        self._asked = False
        """For a socket to the worker."""
        self._joined = True
        """Since the last look at what was begun."""
        self._leaving = self._over = self._lost = self._of_another = False
        self._rechecks: list[float] = []
        """When to ask of each file whether it may still be read: the rules are others."""
        self._dirty: set[bytes] = set()
        self._everything = False
        """Directories came or went: all is to be looked at."""
        self._due = 0.0
        self._later = time.monotonic() + _TRY_LATER
        self._unwritable = -_TRY_LATER
        """When it was last told that the ledger cannot be written."""
        self._too_many = ""
        self._telling = Telling(self._tree, order.shown, self._say_to_people)

    def run(self) -> int:
        while True:
            self._hear()
            if self._over:
                return self._finish()
            if self._leaving or self._lost:
                # The daemon says that the session is over before it sends the signal.
                self._hear()
                return self._finish() if self._over else LEFT
            if self._of_another:
                return ANOTHER
            self._turn()
            self._wait()

    def leave(self) -> None:
        """From a signal's handler: end, and leave everything as it is."""
        self._leaving = True
        if self._client is not None:
            self._client.attached.close()

    # What is to be done.

    def _turn(self) -> None:
        client = self._client
        if client is None or client.attached.closed:
            if not self._asked:
                self._asked = self._joined = True
                self._say(Wanted())
            return
        try:
            self._begin(client)
            if self._copy is not None:
                self._doubt(self._copy)
            if self._copy is not None and (self._everything or time.monotonic() >= self._due):
                self._look_at_everything(client, self._copy)
            elif self._copy is not None and self._dirty:
                self._look_at(client, self._copy)
        except Away as away:
            # Then at everything.
            self._due = time.monotonic() + _AGAIN
            self._dirty.clear()
            self._everything = False
            # What was begun then is nobody's until it is looked at.
            self._joined = True
            self._tell_of(away)
        if self._copy is not None:
            self._tell_what_differs(self._copy)

    def _tell_of(self, away: Away) -> None:
        now = time.monotonic()
        if isinstance(away, Unwritable) and now >= self._unwritable + _TRY_LATER:
            self._unwritable = now
            self._say_to_people(f"the copy waits: {away}")

    def _begin(self, client: LocalClient) -> None:
        """What is known of the copy, if it is one of that export; and what the last process, or the last connection, has left on
        the client. Raises Away."""
        if self._copy is None:
            try:
                export = client.root()
            except Refused as refused:
                raise Away(refused.reason) from None
            names = [name for name in self._tree.scan() if name != TOLD]
            book = self._ledger.open(self._root, export, empty=not names)
            if book is None:
                self._of_another = True
                return
            self._tree.recover(book.ledger.bases)
            self._copy = self._new_copy(client, book)
            if book.ledger.bases:
                # The rules may have become others while nobody kept it.
                self._rechecks = [0.0]
        if self._joined:
            self._copy.recover()
            self._joined = False

    def _new_copy(self, client: LocalClient, book: Book) -> Copy:
        return Copy(
            self._tree,
            client,
            book,
            room=self._room,
            session=self._order.session,
            token=lambda: secrets.token_hex(4),
            tell=self._say_to_people,
        )

    def _look_at_everything(self, client: LocalClient, copy: Copy) -> None:
        """Raises Away."""
        began = time.monotonic()
        self._dirty.clear()
        self._watches.read()
        self._everything = False
        self._doubt(copy)
        self._tree.give_back()
        if began >= self._later:
            self._later = began + _TRY_LATER
            copy.retry_later()
        here = self._tree.scan()
        found = {path: self._is_directory(path) for path in here}
        self._watches.watch([b"", *(path for path, directory in found.items() if directory)])
        most = 2 * self._room.files + _SPARE_NAMES
        there, unknown = client.scan(most)
        self._too_many = f"more than {most} names: the others are not looked at" if b"" in unknown else ""
        if self._rechecks and began >= self._rechecks[0]:
            self._withdraw(client, copy)
            self._rechecks.pop(0)
        copy.round(here, there, lambda path: path not in there and _is_beneath_any(path, unknown))
        now = time.monotonic()
        # What has changed under our hands is looked at again sooner.
        soon = SETTLE if copy.again else 0.0
        self._due = now + max(soon or LOOK_EVERY, LOOK_SHARE * (now - began))

    def _doubt(self, copy: Copy) -> None:
        """What programs had open for writing. Raises Away."""
        for path in self._watches.closed():
            copy.doubt(path)
            self._watches.is_read(path)

    def _before_reading(self, path: bytes) -> None:
        self._hear_programs()
        self._watches.is_read(path)

    def _is_written(self, path: bytes) -> bool:
        self._hear_programs()
        return self._watches.is_written(path)

    def _hear_programs(self) -> None:
        changed, everything = self._watches.read()
        self._dirty |= changed
        self._everything = self._everything or everything

    def _look_at(self, client: LocalClient, copy: Copy) -> None:
        """At what programs have touched. Raises Away."""
        # What is heard meanwhile is for the next turn: a program that writes without end keeps nothing else up.
        todo, self._dirty = sorted(self._dirty), set()
        for path in todo:
            try:
                copy.settle(path, client.look(path))
            except Refused:
                # What a listing says of it counts.
                self._due = 0.0
        if copy.again:
            self._due = min(self._due, time.monotonic() + SETTLE)

    def _withdraw(self, client: LocalClient, copy: Copy) -> None:
        open_still = False
        for path, base in list(copy.ledger.bases.items()):
            if base.remote.kind == FILE and not client.may_read(path):
                open_still |= not copy.withdraw(path, "the policy no longer lets it be read")
        if open_still:
            self._rechecks.append(time.monotonic() + _RECHECK)

    def _is_directory(self, path: bytes) -> bool:
        try:
            found = self._tree.look(path)
        except Refused:
            return False
        return found is not None and found.kind == DIRECTORY

    # The end.

    def _finish(self) -> int:
        """The session is over."""
        if self._client is not None:
            self._client.attached.close()
        for begun in list(self._copy.ledger.begun.values()) if self._copy is not None else ():
            self._say_to_people(f"{shown(begun.temporary)} may be left on the client: the session ended in the middle")
        bases = self._copy.ledger.bases if self._copy is not None else {}
        self._tree.end()
        self._watches.read()
        left = local_end.left(self._tree, bases, self._watches.closed())
        if not left:
            # Of half a copy somebody would take the other half for what was removed here.
            self._ledger.void()
            left = local_end.clear(self._tree, bases)
        if not left:
            return LEFT
        self._telling.tell_left(left)
        return UNSENT

    # Whom it is told.

    def _tell_what_differs(self, copy: Copy) -> None:
        left_out = {path: why for path, (_, why) in copy.left_out.items()}
        if self._too_many:
            left_out[b""] = self._too_many
        self._telling.tell(left_out, self._tree.closed | copy.unsent)

    def _say_to_people(self, line: str) -> None:
        process.tell(PROGRAM, f"{self._order.shown}: {line}")

    # What is heard.

    def _hear(self) -> None:
        while not self._lost:
            try:
                received = self._channel.receive()
            except BlockingIOError:
                return
            except PeerError:
                received = None
            if received is None:
                self._lost = True
                return
            message, fds = received
            match message:
                case Over():
                    self._over = True
                case Terms(size=size, files=files):
                    self._room.size, self._room.files = size, files
                    self._rules_changed()
                case Joined():
                    self._join(fds[0])

    def _rules_changed(self) -> None:
        now = time.monotonic()
        # Twice: the worker hears of them by another socket than ours, and may be busy.
        self._rechecks, self._due = [now, now + _RECHECK], 0.0
        if self._client is not None:
            self._client.forget_rules()
        if self._copy is not None:
            self._copy.retry()

    def _join(self, fd: int) -> None:
        self._asked = False
        try:
            attached = PatientAttached(socket.socket(fileno=fd), self._order.shown)
        except OSError:
            # That worker has gone again.
            time.sleep(SETTLE)
            return
        if self._client is None:
            self._client = LocalClient(attached)
        else:
            self._client.join(attached)
        if self._leaving:
            attached.close()
        self._due = 0.0

    def _wait(self) -> None:
        """Until something is to be done."""
        poll = select.poll()
        for watched in (self._signals, self._channel, self._watches):
            if watched.fileno() >= 0:
                poll.register(watched, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(self._patience() * 1000)}
        self._signals.received()
        if self._watches.fileno() in ready:
            time.sleep(SETTLE)
            self._hear_programs()

    def _patience(self) -> float:
        if self._copy is None:
            return LOOK_EVERY
        # What was heard in the middle of the last turn is not told again.
        longest = SETTLE if self._everything or self._dirty else LOOK_EVERY
        return max(0.0, min(self._due - time.monotonic(), longest))

    def _say(self, message: msgspec.Struct) -> None:
        with contextlib.suppress(PeerError, BlockingIOError):
            self._channel.send(message)


def _is_beneath_any(path: bytes, directories: set[bytes]) -> bool:
    while path not in directories:
        if not path:
            return False
        path = split(path)[0]
    return True
