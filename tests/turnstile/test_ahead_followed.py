"""turnstile/ahead.py, followed through anything that may happen: processes that write, synchronise and get signals, a client that
carries requests out in any order that it may, fails and is lost, and workers that are killed between any two effects.

Whoever was told that it is done, and of no error, finds it at the client. Nobody waits for ever, and nothing is left over."""

import random
from errno import EINTR, ETIMEDOUT
from typing import Any

import pytest
from harness.sansio import O_RDWR, Errno, Mount, attributes

from fuse_gated import operations as op
from fuse_gated.errors import ProtocolError
from fuse_gated.turnstile import effects
from fuse_gated.turnstile.limits import Limits
from fuse_gated.turnstile.turnstile import INTERRUPT_GRACE
from fuse_gated.wire import messages as wire
from fuse_gated.wire.messages import Ask, OpenedFile

SLOTS, SIZE = 3, 5
INODES = {b"f": 21, b"g": 22}


class Client:
    """The other end, which outlives its connections."""

    def __init__(self, chance: random.Random, troubles: float) -> None:
        self.chance = chance
        self.troubles = troubles
        self.files: dict[int, bytearray] = {inode: bytearray(10**6) for inode in INODES.values()}
        self.remotes: dict[int, int] = {}
        self.asked: dict[int, Ask] = {}
        self.remembered: dict[int, Any] = {}
        self.done: list[int] = []

    def asks(self, frame: Ask) -> None:
        assert frame.id not in self.asked
        self.asked[frame.id] = frame

    def cancel(self, number: int) -> None:
        frame = self.asked.get(number)
        if frame is not None and number not in self.remembered and self.chance.random() < 0.5:
            self.remembered[number] = Errno("EINTR")

    def carry_out(self) -> tuple[int, Any] | None:
        """One of those whose turn it is; its reply."""
        due = [frame for frame in self.asked.values() if not set(frame.after) & self.asked.keys()]
        if not due:
            return None
        frame = self.chance.choice(due)
        del self.asked[frame.id]
        if frame.id not in self.remembered:
            self.remembered[frame.id] = self._outcome(frame)
        return frame.id, self.remembered[frame.id]

    def _outcome(self, frame: Ask) -> Any:
        arguments = frame.arguments
        if not isinstance(arguments, wire.Write):
            return None
        if any(isinstance(self.remembered.get(number), Errno) for number in frame.after):
            return Errno("ECANCELED")
        data = bytes(arguments.data)
        if self.chance.random() < self.troubles:
            if self.chance.random() < 0.5:
                return Errno("ENOSPC")
            data = data[: self.chance.randrange(len(data))]
        self.done.append(frame.id)
        self.files[self.remotes[arguments.handle]][arguments.offset : arguments.offset + len(data)] = data
        return len(data)


class Process:
    """Has a file open, and does one thing after the other with it. What it expects of each of its places in it; None: anything,
    because an error was told."""

    def __init__(self, node: int, handle: int, inode: int, start: int) -> None:
        self.node = node
        self.handle = handle
        self.inode = inode
        self.places = [start + SIZE * slot for slot in range(SLOTS)]
        self.expected: list[bytes | None] = [bytes(SIZE)] * SLOTS
        self.number = 0
        self.request: op.Request | None = None
        self.slot = 0
        self.done = 0

    def next(self, chance: random.Random, count: int) -> op.Request:
        if chance.random() < 0.7:
            self.slot = chance.randrange(SLOTS)
            self.request = op.Write(self.node, self.handle, self.places[self.slot], b"%05d" % count, chance.random() < 0.1)
        elif chance.random() < 0.5:
            self.request = op.Fsync(self.node, self.handle, False)
        else:
            self.request = op.Flush(self.node, self.handle, self.handle)
        return self.request

    def answered(self, answer: op.Answer, client: Client) -> None:
        request, self.request = self.request, None
        self.done += 1
        if isinstance(answer, op.Failed) and answer.errno in (EINTR, ETIMEDOUT):
            # What was given up may be carried out at any time, over what comes after it: so nothing comes there any more.
            self.places = [place + 1000 for place in self.places]
        if isinstance(request, op.Write):
            if isinstance(answer, op.Failed):
                self.expected = [None] * SLOTS
            else:
                assert isinstance(answer, op.Count)
                self.expected[self.slot] = bytes(request.data) if answer.count == SIZE else None
        elif isinstance(answer, op.Failed):
            self.expected = [None] * SLOTS
        else:
            self.check(client)

    def check(self, client: Client) -> None:
        """What it was told to be at the client is there."""
        for at, expected in zip(self.places, self.expected, strict=True):
            if expected is not None:
                assert client.files[self.inode][at : at + SIZE] == expected


class World:
    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.client = Client(self.chance, self.chance.choice([0.0, 0.02, 0.2]))
        self.kills = self.chance.choice([0.0, 0.0, 0.01, 0.05])
        self.count = 0
        self.mount = Mount(orders=True, bounds=self._bounds())
        self.processes: list[Process] = []
        silent = self.chance.random() < 0.5
        for name, inode in INODES.items():
            node = self.mount.lookup(name, inode=inode)
            for index in range(2):
                remote = 2 * inode + index
                opened = self.mount.do(op.Open(node, O_RDWR), OpenedFile(remote, attributes(inode)))
                assert isinstance(opened, op.Opened)
                self.client.remotes[remote] = inode
                self.processes.append(Process(node, opened.handle, inode, 100 * index))
                self.mount.t.handle(opened.handle).silent = silent
        self.mount.t.ahead.window = 3 * SIZE
        self.committed: list[Any] = list(self.mount.t.ledger.everything())
        self.ring = bytearray(len(self.mount.ring))
        self.mount.clear()

    def _bounds(self) -> Limits:
        return Limits(max_in_flight=self.chance.choice([3, 8, 256]), max_bytes_in_flight=self.chance.choice([40, 2**20]))

    def carry_out(self) -> None:
        """What the turnstile wants done; or the worker is killed in between."""
        while self.mount.log:
            log, self.mount.log = self.mount.log, []
            for effect in log:
                if self.chance.random() < self.kills:
                    self.kill()
                    break
                self._do(effect)

    def _do(self, effect: effects.Effect) -> None:
        match effect:
            case effects.Send(Ask() as frame):
                if isinstance(frame.arguments, wire.Write):
                    frame = Ask(frame.id, frame.operation, _copied(frame.arguments), frame.after)
                self.client.asks(frame)
            case effects.Send(cancel):
                self.client.cancel(cancel.id)
            case effects.Hold(at, data):
                self.ring[at : at + len(data)] = data
            case effects.Answer(number, answer, rows):
                self.committed += rows
                for process in self.processes:
                    if process.request is not None and process.number == number:
                        process.answered(answer, self.client)

    def kill(self) -> None:
        """The kernel sends again what it has no answer to, to a successor with what there is."""
        self.client.asked.clear()
        before, self.mount = self.mount, Mount(orders=True, ring=bytearray(self.ring), bounds=self._bounds())
        self.mount.number = before.number
        self.mount.t.restore(list(self.committed), 2)
        self.mount.now = before.now
        if self.chance.random() < 0.3:
            # The client is away for a while.
            self.mount.t.suspend(self.mount.now)
            self._send_again()
            self.kills, kills = 0.0, self.kills
            self.carry_out()
            self.kills = kills
            self.committed += self.mount.t.ledger.rows()
            standby, self.mount = self.mount, Mount(orders=True, ring=bytearray(self.ring), bounds=self._bounds())
            self.mount.number, self.mount.now = standby.number, standby.now
            self.mount.t.restore(list(self.committed), 2)
        self.mount.t.resume(self.mount.now)
        self.mount.gather()
        self._send_again()

    def _send_again(self) -> None:
        for process in self.processes:
            if process.request is not None:
                self.mount.number = process.number - 2
                self.mount.ask(process.request)
        self.mount.number = max(process.number for process in self.processes)

    def step(self) -> None:
        idle = [process for process in self.processes if process.request is None]
        busy = [process for process in self.processes if process.request is not None]
        what = self.chance.random()
        if what < 0.45 and idle:
            process = self.chance.choice(idle)
            self.count += 1
            request = process.next(self.chance, self.count)
            process.number = max(each.number for each in [*self.processes, process]) + 2
            process.number = max(process.number, self.mount.number + 2)
            self.mount.number = process.number - 2
            self.mount.ask(request)
        elif what < 0.5 and busy:
            self.mount.interrupt(self.chance.choice(busy).number)
        elif what < 0.55:
            self.mount.tick(self.chance.choice([0.0, INTERRUPT_GRACE, INTERRUPT_GRACE, 20.0]))
        elif what < 0.6:
            self.committed += self.mount.t.ledger.rows()
        else:
            self._reply()
        self.carry_out()

    def _reply(self) -> bool:
        replied = self.client.carry_out()
        if replied is not None:
            self.mount.reply(*replied)
        return replied is not None

    def end(self) -> None:
        """The client answers all, nobody is killed any more."""
        self.kills = 0.0
        while self._reply():
            self.carry_out()
        assert not any(process.request for process in self.processes), "somebody waits for ever"
        for process in self.processes:
            process.request, process.number = op.Fsync(process.node, process.handle, False), self.mount.number + 2
            self.mount.ask(process.request)
            self.carry_out()
            while self._reply():
                self.carry_out()
            assert process.request is None
        debts = self.mount.t.ahead
        assert (list(debts), debts.promised, list(debts.waiting), debts.newest()) == ([], 0, [], ())
        assert (self.mount.t.cache._held, self.mount.t.session.after) == ({}, None)
        assert len(self.client.done) == len(set(self.client.done)), "nothing is done twice"


def _copied(arguments: wire.Write) -> wire.Write:
    return wire.Write(arguments.handle, arguments.offset, memoryview(bytes(arguments.data)), arguments.append)


@pytest.mark.parametrize("seed", range(150))
def test_what_was_acknowledged_is_there_or_an_error_was_told(seed: int) -> None:
    world = World(seed)
    try:
        for _ in range(200):
            world.step()
    except ProtocolError as error:
        # A client that answers nothing for so long ends its session.
        if "was answered" not in str(error):
            raise
        return
    world.end()
    assert all(process.done > 5 for process in world.processes)
