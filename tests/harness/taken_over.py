"""fuse-gated as it is, except that a worker whose session is mounted does what its client tells it: a hostile client that has
taken it over. What its cage then still forbids is tried from inside, by the functions of ATTEMPTS.

Run with `python -m harness.taken_over` and fuse-gated's own arguments.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

import msgspec

from fuse_gated import supervision
from fuse_gated.commands.fuse_gated import main
from fuse_gated.worker import Worker

ORDER: Final = b"order:"
SAID: Final = b"said:"
Facts = dict[str, Any]
"""What the test knows, and an attacker would guess: pids and paths."""

LIBC: Final = ctypes.CDLL(None, use_errno=True)
_PTRACE_ATTACH: Final = 16
_SYSCALLS: Final = {
    "x86_64": {"tgkill": 234, "rt_sigqueueinfo": 129, "pidfd_getfd": 438, "bpf": 321,
                "keyctl": 250, "io_uring_setup": 425, "openat": 257, "clone": 56},
    "aarch64": {"tgkill": 131, "rt_sigqueueinfo": 138, "pidfd_getfd": 438, "bpf": 280,
                 "keyctl": 219, "io_uring_setup": 425, "openat": 56, "clone": 220},
}[os.uname().machine]  # fmt: skip


class _Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


def _checked(result: int) -> int:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _system(name: str, *arguments: int) -> int:
    return _checked(LIBC.syscall(_SYSCALLS[name], *(ctypes.c_long(number) for number in arguments)))


def _read_memory(pid: int) -> int:
    buffer = ctypes.create_string_buffer(8)
    local, remote = _Vector(ctypes.addressof(buffer), 8), _Vector(id(LIBC), 8)
    return _checked(LIBC.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0))


def _start_thread(_facts: Facts) -> None:
    try:
        threading.Thread(target=int).start()
    except RuntimeError as error:
        raise PermissionError(errno.EPERM, str(error)) from None


def _run_own_code(_facts: Facts) -> None:
    try:
        mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except PermissionError as error:
        raise PermissionError(errno.EPERM, error.strerror) from None


def _signal_by_descriptor(facts: Facts) -> None:
    # The kernel would signal whom it names when the descriptor is ready (fcntl(2)).
    fcntl.fcntl(facts["own socket"], fcntl.F_SETOWN, facts["daemon"])


ATTEMPTS: Final[dict[str, Callable[[Facts], object]]] = {
    # sockets
    "open a TCP socket": lambda _: socket.socket(socket.AF_INET, socket.SOCK_STREAM),
    "open a local socket": lambda _: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET),
    "open a netlink socket": lambda _: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "make a socket pair": lambda _: socket.socketpair(),
    "connect its own socket elsewhere": lambda facts: _checked(LIBC.connect(facts["own socket"], b"\0" * 16, 16)),
    "listen on its own socket": lambda facts: _checked(LIBC.listen(facts["own socket"], 5)),
    "accept on its own socket": lambda facts: _checked(LIBC.accept(facts["own socket"], None, None)),
    # processes
    "signal the daemon": lambda facts: os.kill(facts["daemon"], 0),
    "end the daemon": lambda facts: os.kill(facts["daemon"], signal.SIGTERM),
    "signal another worker": lambda facts: os.kill(facts["other"], 0),
    "signal everybody": lambda _: os.kill(-1, 0),
    "signal the process group": lambda _: os.killpg(0, 0),
    "signal a thread of another": lambda facts: _system("tgkill", facts["other"], facts["other"], 0),
    "queue a signal": lambda facts: _system("rt_sigqueueinfo", facts["other"], 0, 0),
    "have a descriptor signal another": _signal_by_descriptor,
    "open a process": lambda facts: os.pidfd_open(facts["other"]),
    "take a descriptor of another": lambda _: _system("pidfd_getfd", 3, 5, 0),
    "trace the daemon": lambda facts: _checked(LIBC.ptrace(_PTRACE_ATTACH, facts["daemon"], 0, 0)),
    "trace another worker": lambda facts: _checked(LIBC.ptrace(_PTRACE_ATTACH, facts["other"], 0, 0)),
    "read the daemon's memory": lambda facts: _read_memory(facts["daemon"]),
    "read another worker's memory": lambda facts: _read_memory(facts["other"]),
    "execute a program": lambda _: os.execv("/bin/true", ["true"]),
    "fork": lambda _: os.fork(),
    "clone": lambda _: _system("clone", 17, 0, 0, 0, 0),
    "start a thread": _start_thread,
    "limit another worker": lambda facts: os.sched_setaffinity(facts["other"], {0}),
    "run code of its own making": _run_own_code,
    # files
    "open a file": lambda _: os.open("/etc/passwd", os.O_RDONLY),
    "open a file by the bare system call": lambda _: _system("openat", -100, id(b"/") + 32, 0, 0),
    "read the policy": lambda facts: os.open(f"{facts['etc']}/policy.yaml", os.O_RDONLY),
    "read the audit": lambda facts: os.open(f"{facts['runtime']}/audit.jsonl", os.O_RDONLY),
    "cut the audit's file": lambda facts: os.ftruncate(facts["own socket"], 0),
    "make room in the audit's file": lambda facts: os.posix_fallocate(facts["own socket"], 0, 4096),
    "write over the audit's beginning": lambda facts: os.pwrite(facts["own socket"], b"{}", 0),
    "write anywhere in the audit's file": lambda facts: os.pwritev(facts["own socket"], [b"{}"], 0, 0x20),
    "append no more": lambda facts: fcntl.fcntl(facts["own socket"], fcntl.F_SETFL, 0),
    "list the runtime directory": lambda facts: os.listdir(facts["runtime"]),
    "look at another's mount": lambda facts: os.stat(facts["other mount"]),
    "open another's mount": lambda facts: os.open(facts["other mount"], os.O_RDONLY),
    "open the FUSE device": lambda _: os.open("/dev/fuse", os.O_RDWR),
    "open the daemon's memory": lambda facts: os.open(f"/proc/{facts['daemon']}/mem", os.O_RDONLY),
    "open another worker's descriptor": lambda facts: os.open(f"/proc/{facts['other']}/fd/3", os.O_RDWR),
    "open its own descriptors anew": lambda _: os.open("/proc/self/fd/3", os.O_RDWR),
    "remove the control socket": lambda facts: os.unlink(f"{facts['runtime']}/control.sock"),
    "make a file": lambda facts: os.open(f"{facts['runtime']}/new", os.O_CREAT | os.O_WRONLY),
    # rights
    "mount": lambda _: _checked(LIBC.mount(b"none", b"/mnt", b"tmpfs", 0, None)),
    "unmount": lambda facts: _checked(LIBC.umount2(facts["other mount"].encode(), 2)),
    "enter a namespace of its own": lambda _: _checked(LIBC.unshare(0x10000000)),
    "become root": lambda _: os.setuid(0),
    "change the root": lambda _: os.chroot("/"),
    "become dumpable again": lambda _: _checked(LIBC.prctl(4, 1, 0, 0, 0)),
    "load a BPF program": lambda _: _system("bpf", 0, 0, 0),
    "use io_uring": lambda _: _system("io_uring_setup", 1, 0),
    "use the kernel's keys": lambda _: _system("keyctl", 0, -3, 0),
}
"""Each must fail with EPERM."""


def open_descriptors(_facts: Facts) -> list[int]:
    """Those that it has, by asking for each."""
    found = []
    for descriptor in range(1024):
        try:
            fcntl.fcntl(descriptor, fcntl.F_GETFD)
        except OSError:
            continue
        found.append(descriptor)
    return found


def allowed(worker: Worker, _facts: Facts) -> str:
    """What shows that code runs here at all."""
    return f"{os.getpid()} {worker.visitor.session}"


def login_again(worker: Worker, facts: Facts) -> None:
    """The daemon knows whose session this is."""
    worker.channel.send(supervision.Login(facts["token"].encode()))


def open_again(worker: Worker, facts: Facts) -> None:
    """Ask for another mount, or for another's."""
    worker.channel.send(supervision.Open(facts["export"], ""))


def nonsense(worker: Worker, _facts: Facts) -> None:
    """Send the daemon what is no message."""
    os.write(worker.channel.fileno(), b"\xc1nonsense")


def vast_report(worker: Worker, _facts: Facts) -> None:
    """Numbers that no answer can carry."""
    assert worker.mounted is not None
    zero = supervision.Report(0, worker.mounted.serving.turnstile.statistics, 0, 0, 0, 0, 0, "", False)
    most = dict.fromkeys(("operations", "denied", "failed", "bytes_read", "bytes_written"), 2**63)
    for _ in range(3):
        worker.channel.send(msgspec.structs.replace(zero, statistics=type(zero.statistics)(**most)))


SPECIAL: Final[dict[str, Callable[[Worker, Facts], object]]] = {
    "allowed": allowed,
    "descriptors": lambda _worker, facts: open_descriptors(facts),
    "login again": login_again,
    "open again": open_again,
    "nonsense": nonsense,
    "vast report": vast_report,
}


def obey(worker: Worker, data: bytes | bytearray) -> None:
    """In place of `Worker.on_message`, once the session is mounted: ORDER and [name, facts] -> SAID and how it went."""
    name, facts = msgspec.msgpack.decode(data[len(ORDER) :])
    facts["own socket"] = worker.socket._socket.fileno()
    try:
        said: Any = SPECIAL[name](worker, facts) if name in SPECIAL else f"done: {ATTEMPTS[name](facts)!r}"
    except OSError as error:
        said = errno.errorcode[error.errno or 0]
    worker.socket.send(SAID + msgspec.msgpack.encode(said))


def _take_over() -> None:
    ordinary = Worker.on_message

    def on_message(worker: Worker, data: bytes | bytearray) -> None:
        if worker.mounted is not None and data.startswith(ORDER):
            obey(worker, data)
        else:
            ordinary(worker, data)

    Worker.on_message = on_message  # type: ignore[method-assign]


if __name__ == "__main__":
    _take_over()
    sys.exit(main())
