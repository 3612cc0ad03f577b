"""Machines with a network between them, as far as programs can tell: network namespaces, each with one interface on one bridge.

Each namespace belongs to a process that ends with this one, so nothing of it is left behind, whatever ends the tests. Needs root,
ip(8), unshare(1), nsenter(1) and setpriv(1).
"""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from typing import Final

from harness.needs import need, need_that

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET: Final = 0x40000000


class Machine:
    """One network namespace. `address` is where the others find it."""

    def __init__(self, address: str, pid: int, switch: "Machine | None" = None, port: str = "") -> None:
        self.address = address
        self._pid, self._switch, self._port = pid, switch, port

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """In it, for as long as it takes to start programs there and to make sockets."""
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        there = os.open(f"/proc/{self._pid}/ns/net", os.O_RDONLY)
        try:
            self._enter(there)
            yield
        finally:
            self._enter(home)
            os.close(there)
            os.close(home)

    def fall_silent(self) -> None:
        """As when its cable is pulled: what is sent either way is lost, and nobody is told."""
        assert self._switch is not None
        self._switch.set_up(f"link set {self._port} down")

    def speak_again(self) -> None:
        assert self._switch is not None
        self._switch.set_up(f"link set {self._port} up")

    def set_up(self, *commands: str) -> None:
        """ip(8)'s commands. Raises CalledProcessError with what it says."""
        enter = ["nsenter", f"--net=/proc/{self._pid}/ns/net", "ip", "-batch", "-"]
        subprocess.run(enter, input="\n".join(commands), text=True, check=True, capture_output=True, timeout=60)

    @staticmethod
    def _enter(namespace: int) -> None:
        assert _LIBC.setns(namespace, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


@contextlib.contextmanager
def machines(addresses: Sequence[str]) -> Iterator[list[Machine]]:
    """A machine for each address (of IPv4, within one /24). Skips the test where none can be made."""
    need("root", "ip", "unshare", "nsenter", "setpriv")
    with contextlib.ExitStack() as ends:
        pids = [ends.enter_context(_namespace()) for _ in range(len(addresses) + 1)]
        switch = Machine("", pids[0])
        made = [Machine(address, pid, switch, f"port{pid}") for address, pid in zip(addresses, pids[1:], strict=True)]
        try:
            switch.set_up("link add bridge type bridge", "link set bridge up")
            for machine, pid in zip(made, pids[1:], strict=True):
                port = f"port{pid}"
                switch.set_up(f"link add {port} type veth peer name eth0 netns {pid}", f"link set {port} master bridge up")
                machine.set_up("link set lo up", f"addr add {machine.address}/24 dev eth0", "link set eth0 up")
        except subprocess.CalledProcessError as error:
            need_that(False, f"no network of namespaces can be made here: {error.stderr.strip()}")
        yield made


@contextlib.contextmanager
def _namespace() -> Iterator[int]:
    """The process that has it."""
    command = ["setpriv", "--pdeathsig=KILL", "unshare", "--net", "sh", "-c", "echo; exec sleep infinity"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stderr is not None
            if not holder.stdout.readline():
                need_that(False, f"no network namespace can be made here: {holder.stderr.read().decode().strip()}")
            yield holder.pid
        finally:
            holder.kill()
