"""A link of a stated round trip and bandwidth between two network namespaces, on one machine and without netem.

Each end has a TAP device (tun(4)); a process between them reads what one sends, and hands it to the other when it would have
arrived. TCP on both ends is the kernel's own: windows, slow start and acknowledgements behave as over a real line. Nothing is
lost, and what waits is bounded by the ends' windows alone. The devices take segments of up to 64 KiB (virtio-net's header, TSO),
so that this process costs little beside what is measured; what they take on the line is counted by their bytes.

The namespaces belong to processes that end with this one, so nothing is left behind. Needs root.
"""

import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

MEGABITS: Final = 240
"""The bandwidth unless another is asked for."""
_CLIENT, _SERVER = "10.98.0.1", "10.98.0.2"
# linux/if_tun.h, linux/prctl.h, linux/sched.h
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4 = 0x01, 0x02
_VNET_HEADER: Final = 10
_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK = 1, 29
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Link:
    """What a command is prefixed with to run at that end, and under which address the other end finds it."""

    round_trip: float
    megabits: int
    client: tuple[str, ...] = ()
    server: tuple[str, ...] = ()
    client_address: str = "127.0.0.1"
    server_address: str = "127.0.0.1"


@contextlib.contextmanager
def link(round_trip: float, megabits: int = MEGABITS) -> Iterator[Link]:
    """`round_trip` in milliseconds; 0 is loopback, with no bandwidth but the machine's. Raises RuntimeError where the machine
    cannot make one."""
    if not round_trip:
        yield Link(0, 0)
        return
    command = [sys.executable, __file__, str(round_trip / 2), str(megabits)]
    between = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert between.stdout is not None
        line = between.stdout.readline()
        if not line:
            raise RuntimeError("no delayed link can be made here; it needs root, ip(8), nsenter(1) and /dev/net/tun")
        client, server = (("nsenter", f"--net=/proc/{pid}/ns/net", "--") for pid in json.loads(line))
        yield Link(round_trip, megabits, client, server, _CLIENT, _SERVER)
    finally:
        between.terminate()
        between.wait()


def _namespace() -> int:
    """The pid of a process that does nothing but have a network namespace of its own, for as long as this one lives."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if _LIBC.unshare(_CLONE_NEWNET) != 0:
            os._exit(1)
        os.close(ready)
        os.write(told, b"!")
        os.close(1)
        while True:
            signal.pause()
    os.close(told)
    if not os.read(ready, 1):
        raise SystemExit("bench: no network namespace can be made here")
    os.close(ready)
    return pid


def _tap(pid: int, address: str) -> int:
    """A device in that process's namespace, up."""
    home, there = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    if _LIBC.setns(there, _CLONE_NEWNET) != 0:
        raise SystemExit("bench: a network namespace cannot be entered here")
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"tap0", _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
    fcntl.ioctl(device, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
    for words in (f"addr add {address}/24 dev tap0", "link set tap0 up txqueuelen 10000", "link set lo up"):
        subprocess.run(["ip", *words.split()], check=True)
    _LIBC.setns(home, _CLONE_NEWNET)
    os.close(home)
    os.close(there)
    return device


def _carry(one: int, other: int, delay: float, rate: float) -> None:
    """For ever. `delay` in seconds, one way; `rate` in bytes a second, each way."""
    held: list[tuple[float, int, int, bytes]] = []
    free_from = {one: 0.0, other: 0.0}
    goes_to = {one: other, other: one}
    count = 0
    while True:
        wait = max(0.0, held[0][0] - time.monotonic()) if held else None
        for device in select.select([one, other], [], [], wait)[0]:
            for _ in range(32):
                try:
                    packet = os.read(device, 65536 + 64)
                except BlockingIOError:
                    break
                # It arrives when its last byte does, after what was sent before it.
                sent = max(time.monotonic(), free_from[device]) + (len(packet) - _VNET_HEADER) / rate
                free_from[device] = sent
                count += 1
                heapq.heappush(held, (sent + delay, count, goes_to[device], packet))
        while held and held[0][0] <= time.monotonic():
            _, _, device, packet = heapq.heappop(held)
            with contextlib.suppress(OSError):
                os.write(device, packet)


def main() -> None:
    """link.py DELAY MEGABITS: DELAY milliseconds one way. Prints the pids that have the client's and the server's namespace."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # A timer of the kernel's usual slack would add its 50 µs to each way.
    _LIBC.prctl(_PR_SET_TIMERSLACK, 1)
    with contextlib.suppress(OSError):
        os.nice(-15)
    client, server = _namespace(), _namespace()
    devices = _tap(client, _CLIENT), _tap(server, _SERVER)
    print(json.dumps([client, server]), flush=True)
    _carry(*devices, float(sys.argv[1]) / 1e3, float(sys.argv[2]) * 1e6 / 8)


if __name__ == "__main__":
    main()
