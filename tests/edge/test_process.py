"""edge/process.py: real children, that are really caged."""

import ctypes
import errno
import fcntl
import gc
import importlib
import json
import mmap
import os
import resource
import select
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness import need, need_that

from fuse_gated.edge import mounts, process, seccomp
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.loop import Loop
from fuse_gated.errors import GateError, KernelError, OperatorError

LIBC = ctypes.CDLL(None, use_errno=True)
PATIENCE = 30.0
"""Seconds after which a child that should have ended is a failure."""


def in_child(function: Callable[[], Any], *, before: Callable[[], object] = lambda: None, ignored: Collection[int] = ()) -> Any:
    """What `function` returns in a forked child, after `before` ran there; None if the child ended without an answer."""
    reader, writer = os.pipe()

    def main() -> int:
        before()
        answer = json.dumps(function()).encode()
        os.write(writer, answer)
        return 0

    # The child's own answer pipe is kept open by every cage in this file.
    KEPT[:] = [writer]
    try:
        child = process.spawn(main, ignored=ignored)
    finally:
        os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    assert child.wait(PATIENCE) == 0
    return json.loads(answer) if answer else None


KEPT: list[int] = []


def cage(*keep: int, seccomp: bool = True) -> None:
    process.cage([*KEPT, *keep], seccomp=seccomp)


def attempt(function: Callable[[], object]) -> str:
    """'done', or the name of the errno."""
    try:
        function()
    except OSError as error:
        return error.strerror or str(error)
    except (RuntimeError, ValueError) as error:
        # How Python tells that no thread could be started, and that no limit could be set.
        return str(error)
    return "done"


def check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def call(name: str, *arguments: int) -> None:
    """A system call by its name."""
    number = seccomp.library().resolve_syscall(seccomp.library().Arch.NATIVE, name)
    check(LIBC.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)))


class Surroundings:
    """What an attempt finds open already: everything that the cage lets it keep."""

    def __init__(self, directory: Path) -> None:
        self.parent = os.getpid()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.unconnected = socket.socket()
        self.unbound = socket.socket()
        self.journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.journal.bind(str(directory / "journal"))
        self.other = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.other.bind(str(directory / "other"))
        self.datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.datagram.connect(str(directory / "journal"))
        self.directory = directory
        self.sockets = (self.listener, self.unconnected, self.unbound, self.journal, self.other, self.datagram)
        self.pidfd = os.pidfd_open(self.parent)
        self.root = os.open("/", os.O_PATH)

    def descriptors(self) -> list[int]:
        return [*(sock.fileno() for sock in self.sockets), self.pidfd, self.root]

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        os.close(self.pidfd)
        os.close(self.root)


@pytest.fixture
def surroundings(tmp_path: Path) -> Iterator[Surroundings]:
    made = Surroundings(tmp_path)
    yield made
    made.close()


def fork_once() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def read_parent(at: Surroundings) -> None:
    buffer = ctypes.create_string_buffer(8)
    local = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
    # The same address: after a fork the parent has something there too.
    check(LIBC.process_vm_readv(at.parent, local, 1, local, 1, 0))


def make_executable() -> None:
    check(LIBC.mprotect(ctypes.c_void_p(PAGE), mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC))


PAGE_MAP = mmap.mmap(-1, mmap.PAGESIZE)
PAGE = ctypes.addressof(ctypes.c_char.from_buffer(PAGE_MAP))

ATTEMPTS: dict[str, Callable[[Surroundings], object]] = {
    "socket": lambda _: socket.socket(),
    "unix-socket": lambda _: socket.socket(socket.AF_UNIX),
    "socketpair": lambda _: socket.socketpair(),
    "connect": lambda at: at.unconnected.connect(at.listener.getsockname()),
    "bind": lambda at: at.unbound.bind(("127.0.0.1", 0)),
    "listen": lambda at: at.unbound.listen(),
    "send-elsewhere": lambda at: at.datagram.sendto(b"x", str(at.directory / "other")),
    "kill-parent": lambda at: os.kill(at.parent, 0),
    "kill-self": lambda _: os.kill(os.getpid(), 0),
    "tgkill-parent": lambda at: call("tgkill", at.parent, at.parent, 0),
    "signal-by-pidfd": lambda at: signal.pidfd_send_signal(at.pidfd, 0),
    "signal-by-owner": lambda at: fcntl.fcntl(at.datagram, fcntl.F_SETOWN, at.parent),
    "ptrace": lambda at: check(LIBC.ptrace(0x4206, at.parent, 0, 0)),  # PTRACE_SEIZE, which does not stop it
    "read-memory": read_parent,
    "pidfd-open": lambda at: os.pidfd_open(at.parent),
    "pidfd-getfd": lambda at: call("pidfd_getfd", at.pidfd, 1, 0),
    "limit-parent": lambda at: resource.prlimit(at.parent, resource.RLIMIT_CORE),
    "limit-self": lambda _: resource.setrlimit(resource.RLIMIT_CORE, resource.getrlimit(resource.RLIMIT_CORE)),
    "nice-parent": lambda at: os.setpriority(os.PRIO_PROCESS, at.parent, os.getpriority(os.PRIO_PROCESS, 0)),
    "exec": lambda _: os.execv("/bin/true", ["true"]),
    "fork": lambda _: fork_once(),
    "thread": lambda _: threading.Thread(target=int).start(),
    "open": lambda _: os.open("/etc/passwd", os.O_RDONLY),
    "open-beneath": lambda at: mounts.open_beneath(at.root, "etc/passwd", os.O_RDONLY),
    "create": lambda at: os.open(at.directory / "made", os.O_WRONLY | os.O_CREAT),
    "stat": lambda _: os.stat("/etc/passwd"),
    "list": lambda _: os.listdir("/"),
    "unlink": lambda at: os.unlink(at.directory / "journal"),
    "chdir": lambda _: os.chdir("/"),
    "chmod": lambda at: os.fchmod(at.datagram.fileno(), 0o600),
    "mount": lambda at: check(LIBC.mount(b"none", os.fsencode(at.directory), b"tmpfs", 0, None)),
    "unshare": lambda _: check(LIBC.unshare(0x04000000)),  # CLONE_NEWUTS
    "setuid": lambda _: os.setuid(65534),
    "setgroups": lambda _: os.setgroups([]),
    "executable-map": lambda _: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "executable-page": lambda _: make_executable(),
    "dumpable": lambda _: check(LIBC.prctl(4, 1, 0, 0, 0)),
    "socket-filter": lambda at: at.unconnected.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
}
"""Each succeeds where there is no cage, as root."""

OTHER_WORDS = {"thread": "can't start new thread", "limit-self": "not allowed to raise maximum limit"}
"""For EPERM."""


@pytest.mark.parametrize(("inherited", "own"), [("-400\n", "0"), ("0\n", "0\n"), ("200\n", "200\n")])
def test_a_worker_is_not_spared_where_its_parent_is(tmp_path: Path, inherited: str, own: str) -> None:
    setting = tmp_path / "oom_score_adj"
    setting.write_text(inherited)
    process.be_killed_first(str(setting))
    assert setting.read_text() == own


def test_without_proc_a_worker_is_made_all_the_same(tmp_path: Path) -> None:
    process.be_killed_first(str(tmp_path / "missing"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ATTEMPTS)
def test_the_cage_forbids(name: str, surroundings: Surroundings) -> None:
    need("root")

    def outcome() -> str:
        return attempt(lambda: ATTEMPTS[name](surroundings))

    # exec leaves nobody who could answer. The mount is made in a namespace of the child's own.
    free = in_child(outcome, before=private_mounts)
    assert free == (None if name == "exec" else "done")
    caged = in_child(outcome, before=lambda: cage(*surroundings.descriptors()))
    assert caged == OTHER_WORDS.get(name, "Operation not permitted")


def private_mounts() -> None:
    check(LIBC.unshare(0x00020000))
    check(LIBC.mount(b"none", b"/", None, 0x4000 | 0x40000, None))


def test_every_other_system_call_of_this_machine_is_refused() -> None:
    library = seccomp.library()
    allowed = {*seccomp.ALLOWED, *(name for name, _ in seccomp.WITH_ARGUMENTS), "tgkill"}
    numbers = {library.resolve_syscall(library.Arch.NATIVE, name) for name in allowed}
    # uretprobe and uprobe of x86-64: the kernel's own, which pass any filter, and end a process that calls them.
    numbers |= {335, 336}

    def refused() -> list[int]:
        passed = []
        for number in set(range(600)) - numbers:
            result = LIBC.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
            if (result, ctypes.get_errno()) != (-1, 1):
                passed.append(number)
        return passed

    assert in_child(refused, before=cage) == []


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 is an ABI of x86-64")
def test_a_call_by_another_abi_ends_the_process() -> None:
    def main() -> int:
        process.cage([], seccomp=True)
        LIBC.syscall(ctypes.c_long(0x40000000 + 39))
        return 0

    assert process.spawn(main).wait(PATIENCE) == -signal.SIGSYS


def test_only_the_kept_descriptors_stay_open(surroundings: Surroundings) -> None:
    kept = surroundings.journal.fileno()
    high = os.dup2(kept, 900)

    def left() -> list[int]:
        return [fd for fd in range(3, 2000) if attempt(lambda fd=fd: os.set_blocking(fd, True)) == "done"]

    expected = sorted({kept, high})
    assert in_child(lambda: [fd for fd in left() if fd not in KEPT], before=lambda: cage(kept, high)) == expected
    assert in_child(lambda: [fd for fd in left() if fd not in KEPT], before=lambda: cage(seccomp=False)) == []
    os.close(high)


def test_nobody_of_the_same_uid_can_trace_a_caged_process_and_it_leaves_no_core() -> None:
    need("root")
    ready, caged_tells = os.pipe()
    waits, end = os.pipe()

    def victim(caged: bool) -> int:
        process.drop_to(65534, 65534, [])
        check(LIBC.prctl(4, 1, 0, 0, 0))
        if caged:
            process.cage([caged_tells, waits], seccomp=False)
            assert resource.getrlimit(resource.RLIMIT_CORE) == (0, 0)
        os.write(caged_tells, b"x")
        os.read(waits, 1)
        return 0

    def steal(pid: int) -> str:
        process.drop_to(65534, 65534, [])
        return attempt(lambda: call("pidfd_getfd", os.pidfd_open(pid), waits, 0))

    outcomes = []
    for caged in (False, True):
        child = process.spawn(lambda caged=caged: victim(caged))
        os.read(ready, 1)
        outcomes.append(in_child(lambda child=child: steal(child.pid)))
        os.write(end, b"x")
        assert child.wait(PATIENCE) == 0
    assert outcomes == ["done", "Operation not permitted"]
    for fd in (ready, caged_tells, waits, end):
        os.close(fd)


def test_no_new_privileges() -> None:
    def status() -> int:
        return LIBC.prctl(39, 0, 0, 0, 0)  # PR_GET_NO_NEW_PRIVS

    assert in_child(status) == 0
    assert in_child(status, before=lambda: cage(seccomp=False)) == 1


def test_an_ordinary_user_can_be_caged() -> None:
    need("root")

    def before() -> None:
        process.drop_to(65534, 65534, [])
        cage()

    assert in_child(lambda: attempt(socket.socket), before=before) == "Operation not permitted"


def test_what_cannot_be_caged_says_so() -> None:
    def load_again() -> str:
        with pytest.raises(KernelError) as caught:
            seccomp.load_filter()
        return str(caught.value)

    assert "seccomp" in in_child(load_again, before=cage)

    def name_it() -> str:
        with pytest.raises(KernelError) as caught:
            process.adopt_orphans()
        return str(caught.value)

    assert "prctl(2)" in in_child(name_it, before=cage)


# What a worker needs works.


def certificate(directory: Path) -> tuple[str, str]:
    need("openssl")
    key, chain = directory / "key.pem", directory / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(chain)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    return str(chain), str(key)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("by_memory", [False, True], ids=["wrapped-socket", "memory-bio"])
def test_tls_works_on_a_socket_that_is_open(tmp_path: Path, version: ssl.TLSVersion, by_memory: bool) -> None:
    chain, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    context.maximum_version = version
    client_context = ssl.create_default_context(cafile=chain)
    ours, theirs = socket.socketpair()

    def serve() -> str:
        if not by_memory:
            with context.wrap_socket(theirs, server_side=True) as tls:
                for _ in range(3):
                    tls.sendall(tls.recv(1000).upper())
                return tls.version() or ""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls_object = context.wrap_bio(incoming, outgoing, server_side=True)

        def until_done(step: Callable[[], Any]) -> Any:
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    theirs.sendall(outgoing.read())
                    incoming.write(theirs.recv(65536))
                finally:
                    theirs.sendall(outgoing.read())

        until_done(tls_object.do_handshake)
        for _ in range(3):
            data = until_done(lambda: tls_object.read(1000))
            until_done(lambda data=data: tls_object.write(data.upper()))
        return tls_object.version() or ""

    def talk() -> None:
        with client_context.wrap_socket(ours, server_hostname="localhost") as tls:
            for _ in range(3):
                tls.sendall(b"hello")
                echoes.append(tls.recv(1000))

    echoes: list[bytes] = []
    reader, writer = os.pipe()

    def main() -> int:
        process.cage([theirs.fileno(), writer], seccomp=True)
        os.write(writer, serve().encode())
        return 0

    child = process.spawn(main)
    theirs.close()
    os.close(writer)
    talk()
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read().decode() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]
    assert child.wait(PATIENCE) == 0
    assert echoes == [b"HELLO"] * 3


def test_the_loop_and_a_helper_thread_work_and_the_thread_is_caged_too() -> None:
    def both() -> list[str]:
        told: list[str] = []
        begin = threading.Event()
        loop = Loop()

        def helper() -> None:
            begin.wait()
            outcome = attempt(socket.socket)
            loop.from_thread(lambda: told.append(outcome))
            loop.from_thread(loop.stop)

        thread = threading.Thread(target=helper)
        thread.start()
        readable, writable = socket.socketpair()
        cage(readable.fileno(), writable.fileno(), loop._epoll.fileno(), loop._wake)
        loop.watch(readable.fileno(), lambda _events: told.append(readable.recv(100).decode()) or begin.set())
        loop.after(0.001, lambda: writable.send(b"timer") and None)
        loop.run()
        thread.join()
        another = Loop()
        another.soon(another.stop)
        another.run()
        return told

    assert in_child(both) == ["timer", "Operation not permitted"]


class Note(msgspec.Struct, frozen=True, tag="note"):
    text: str


def test_descriptors_are_sent_and_received() -> None:
    decoder: msgspec.msgpack.Decoder[Note] = msgspec.msgpack.Decoder(Note)
    ours, theirs = Channel.pair(decoder, decoder)

    def work() -> str:
        received = theirs.receive()
        assert received is not None
        _, (pipe,) = received
        os.write(pipe, b"from the cage")
        memory = os.memfd_create("snapshot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(memory, b"state")
        theirs.send(Note("snapshot"), [memory])
        return "sent"

    reader, writer = os.pipe()
    ours.send(Note("pipe"), [writer])
    assert in_child(work, before=lambda: cage(theirs.fileno())) == "sent"
    received = ours.receive()
    assert received is not None
    note, (memory,) = received
    assert note == Note("snapshot")
    assert os.pread(memory, 100, 0) == b"state"
    assert os.read(reader, 100) == b"from the cage"
    for fd in (reader, writer, memory):
        os.close(fd)
    ours.close()
    theirs.close()


def everyday() -> None:
    """What Python does by itself, and what a worker does beside sockets."""
    assert zlib.decompress(zlib.compress(b"x" * 100_000)) == b"x" * 100_000
    assert json.loads(json.dumps({"a": [1, None, "ä"]})) == {"a": [1, None, "ä"]}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(Note("x")), type=Note) == Note("x")
    try:
        raise ValueError("for its traceback")
    except ValueError:
        assert "for its traceback" in traceback.format_exc()
    memory = os.memfd_create("journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(memory, bytes(8192))
    with mmap.mmap(memory, 8192) as view:
        view[:5] = b"state"
    assert os.lseek(memory, 0, os.SEEK_END) == 8192
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    with open(memory, "r+b", buffering=0) as file:
        assert file.read(0) == b""
    grown = bytearray(1000)
    while len(grown) < 100_000_000:
        grown *= 10
    del grown
    lists = [[number] for number in range(300_000)]
    del lists
    gc.collect()
    assert len(os.urandom(32)) == 32
    time.sleep(0.001)
    assert time.monotonic() > 0
    event = os.eventfd(0, os.EFD_CLOEXEC)
    os.eventfd_write(event, 3)
    assert select.select([event], [], [], 0)[0]
    assert os.dup(event) > event
    heard: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    signal.raise_signal(signal.SIGUSR1)
    assert heard == [signal.SIGUSR1]
    assert os.getpid() != os.getppid()
    assert os.getuid() == os.geteuid()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 0
    process.set_name("caged")
    print("a word", file=sys.__stderr__)
    with pytest.raises(ImportError):
        importlib.import_module("this_module_does_not_exist")


def test_everyday_work_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    assert in_child(lambda: everyday() or "done", before=cage) == "done"
    assert "a word" in capfd.readouterr().err


def test_a_sockets_options_can_be_set() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as connection:

        def options() -> str:
            again = socket.socket(fileno=connection.fileno())
            again.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            again.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            again.settimeout(5)
            again.setblocking(False)
            again.send(b"x")
            again.sendmsg([b"y"])
            again.getpeername()
            again.shutdown(socket.SHUT_WR)
            again.detach()
            return "done"

        assert in_child(options, before=lambda: cage(connection.fileno())) == "done"
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(2, socket.MSG_WAITALL) == b"xy"


def test_a_mount_is_served_from_the_cage(tmp_path: Path) -> None:
    need("root", "fuse")
    directory = os.open(tmp_path, os.O_PATH)
    device = mounts.mount_fuse(directory, source="test")
    os.close(directory)

    def serve() -> list[int]:
        # linux/fuse.h: INIT (26) comes first; answered with an errno, the connection takes no more requests.
        request = os.read(device, 2**20 + 4096)
        _, opcode, unique = struct.unpack_from("=IIQ", request)
        return [opcode, os.writev(device, [struct.pack("=IiQ", 16, -errno.ENOSYS, unique)])]

    try:
        assert in_child(serve, before=lambda: cage(device)) == [26, 16]
    finally:
        os.close(device)
        assert mounts.unmount(str(tmp_path))


# Children.


def test_a_child_ends_with_what_its_main_returns_or_was_ended_by() -> None:
    assert process.spawn(lambda: 0).wait(PATIENCE) == 0
    assert process.spawn(lambda: 5).wait(PATIENCE) == 5
    assert process.spawn(lambda: os.kill(os.getpid(), signal.SIGKILL) or 0).wait(PATIENCE) == -signal.SIGKILL


def test_a_gate_error_is_told_and_is_the_exit_status(capfd: pytest.CaptureFixture[str]) -> None:
    def refuse() -> int:
        raise OperatorError("the port is taken", "choose another")

    class ConfigurationFault(GateError):
        exit_status = 4

    def misconfigured() -> int:
        raise ConfigurationFault("wrong")

    assert process.spawn(refuse, program="fuse-gated-test").wait(PATIENCE) == 1
    assert process.spawn(misconfigured).wait(PATIENCE) == 4
    assert capfd.readouterr().err == "fuse-gated-test: the port is taken (choose another)\nfuse-gated: wrong\n"


def test_any_other_error_is_shown_with_its_place(capfd: pytest.CaptureFixture[str]) -> None:
    assert process.spawn(lambda: 1 // 0).wait(PATIENCE) == 1
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_waiting_has_an_end_and_a_status_stays_known() -> None:
    child = process.spawn(lambda: signal.pause() or 0)
    assert child.wait(0.001) is None
    child.send_signal(signal.SIGTERM)
    assert child.wait(PATIENCE) == -signal.SIGTERM
    assert child.wait(0) == -signal.SIGTERM
    child.send_signal(signal.SIGTERM)  # no process, no error


def test_a_signal_to_a_child_that_has_ended_but_was_not_reaped_is_no_error() -> None:
    child = process.spawn(lambda: 0)
    select.select([child], [], [], PATIENCE)
    child.send_signal(signal.SIGTERM)
    assert child.wait(PATIENCE) == 0


def test_ending_a_child_that_does_not_heed_sigterm() -> None:
    assert process.spawn(lambda: signal.pause() or 0).end(PATIENCE) == -signal.SIGTERM
    reader, writer = os.pipe()

    def stubborn() -> int:
        os.write(writer, b"x")
        while True:
            signal.pause()

    child = process.spawn(stubborn, ignored=[signal.SIGTERM])
    os.read(reader, 1)
    assert child.end(0.05) == -signal.SIGKILL
    os.close(reader)
    os.close(writer)


def test_a_child_starts_with_the_default_actions_and_does_not_wake_its_parent() -> None:
    with process.Signals(signal.SIGUSR1, signal.SIGTERM) as signals:
        assert process.spawn(lambda: os.kill(os.getpid(), signal.SIGUSR1) or 0).wait(PATIENCE) == -signal.SIGUSR1
        assert signals.received() == []
        assert process.spawn(lambda: os.kill(os.getpid(), signal.SIGUSR1) or 3, ignored=[signal.SIGUSR1]).wait(PATIENCE) == 3


def test_signals_are_something_to_wait_for() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with process.Signals(signal.SIGUSR1, signal.SIGUSR2) as signals:
        assert signals.received() == []
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR2)
        assert select.select([signals], [], [], PATIENCE)[0] == [signals]
        assert sorted(signals.received()) == [signal.SIGUSR1, signal.SIGUSR2]
        assert signals.received() == []
    assert signal.getsignal(signal.SIGUSR1) == before


def test_children_are_those_of_this_process_only() -> None:
    child = process.spawn(lambda: signal.pause() or 0)
    assert child.pid in process.children()
    assert in_child(process.children) == []
    child.end(PATIENCE)
    assert child.pid not in process.children()


def test_orphans_are_adopted_and_a_child_dies_with_its_parent() -> None:
    reader, writer = os.pipe()

    def grandchild() -> int:
        parent = os.getppid()
        process.die_with_parent(parent)
        os.write(writer, b"ready")
        signal.pause()
        return 0

    def child() -> int:
        process.spawn(grandchild)
        os.read(reader, 5)
        os._exit(0)

    def ancestor() -> list[int]:
        process.adopt_orphans()
        process.spawn(child).wait(PATIENCE)
        (orphan,) = process.children()
        return [process.Child(orphan).wait(PATIENCE) or 0]

    assert in_child(ancestor) == [-signal.SIGTERM]
    os.close(reader)
    os.close(writer)


def test_a_parent_that_is_gone_already_is_noticed() -> None:
    def orphan() -> int:
        process.die_with_parent(os.getppid() + 1)
        return 0

    assert process.spawn(orphan).wait(PATIENCE) == -signal.SIGTERM


def test_a_name_is_set_and_cut_off() -> None:
    def name() -> str:
        process.set_name("fuse-gated worker of acme")
        return Path("/proc/self/comm").read_text().strip()

    assert in_child(name) == "fuse-gated work"


def test_dropping_to_a_user_is_for_good() -> None:
    need("root")

    def drop() -> list[Any]:
        process.drop_to(65534, 65533, [5, 3])
        again = attempt(lambda: os.setuid(0))
        return [os.getresuid(), os.getresgid(), sorted(os.getgroups()), again]

    assert in_child(drop) == [[65534] * 3, [65533] * 3, [3, 5], "Operation not permitted"]


def test_dropping_to_root_or_without_the_right_is_refused() -> None:
    need("root")

    def refusals() -> list[str]:
        with pytest.raises(OperatorError) as to_root:
            process.drop_to(0, 0, [])
        process.drop_to(65534, 65534, [])
        with pytest.raises(KernelError) as without_right:
            process.drop_to(1, 1, [])
        return [to_root.value.message, without_right.value.message]

    to_root, without_right = in_child(refusals)
    assert "root" in to_root
    assert "uid 1" in without_right


def test_closed_standard_descriptors_are_opened() -> None:
    def reopened() -> list[Any]:
        before = set(os.listdir("/proc/self/fd"))
        os.close(0)
        os.close(2)
        process.open_standard_descriptors()
        devices = [os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 2)]
        return [devices, before == set(os.listdir("/proc/self/fd")), os.get_inheritable(2)]

    assert in_child(reopened) == [["/dev/null", "/dev/null"], True, True]


def test_accounts_and_groups_are_found_by_name() -> None:
    account = process.find_account("root")
    assert account == process.Account("root", 0, 0)
    assert process.find_account("no-such-user-here") is None
    assert process.find_group("root") == 0
    assert process.find_group("no-such-group-here") is None


@pytest.mark.parametrize(("fuse", "groups"), [(None, [9, 70]), (7, [7, 9, 70])])
def test_the_groups_of_the_daemon(monkeypatch: pytest.MonkeyPatch, fuse: int | None, groups: list[int]) -> None:
    monkeypatch.setattr(process, "find_group", {"fuse": fuse}.__getitem__)
    monkeypatch.setattr(os, "getgrouplist", lambda name, group: [70, group, 9] if name == "gatekeeper" else [])
    assert process.groups_of(process.Account("gatekeeper", 4711, 4712)) == groups


def test_a_stderr_that_is_gone_is_no_reason_to_stop(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    process.tell("fuse-gated", "a word")
    assert capfd.readouterr().err == "fuse-gated: a word\n"
    reader, writer = os.pipe()
    os.close(reader)
    with monkeypatch.context() as patched, os.fdopen(writer, "w", buffering=1) as broken:
        patched.setattr(sys, "stderr", broken)
        process.tell("fuse-gated", "nobody hears this")
        assert broken.closed is False
        os.dup2(1, writer)


def _turn() -> int:
    """Nanoseconds for which this thread may run at a time (sched_getattr(2))."""
    found = (ctypes.c_uint64 * 6)()
    number = {"x86_64": 315, "aarch64": 275}[os.uname().machine]
    assert ctypes.CDLL(None).syscall(number, 0, ctypes.byref(found), ctypes.sizeof(found), 0) == 0
    return found[3]


def test_turns_are_short_and_nothing_else_is_changed() -> None:
    need_that(os.uname().machine in ("x86_64", "aarch64"), "this architecture's system calls have other numbers")

    def child() -> int:
        os.nice(3)
        took = process.take_short_turns(0.0004)
        same = os.sched_getscheduler(0) == os.SCHED_OTHER and os.getpriority(os.PRIO_PROCESS, 0) == nice + 3
        return 0 if took and same and _turn() in (400_000, 0) else 5

    nice = os.getpriority(os.PRIO_PROCESS, 0)
    assert process.spawn(child).wait() == 0


def test_who_is_scheduled_otherwise_keeps_its_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getscheduler", lambda _pid: os.SCHED_BATCH)
    assert not process.take_short_turns(0.0004)
    monkeypatch.undo()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "", "6.12", "", "m68k")))
    assert not process.take_short_turns(0.0004)


def test_a_signal_for_the_child_is_ignored_from_its_first_moment_on() -> None:
    """Also one that its parent does not handle."""
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
    reader, writer = os.pipe()

    def child() -> int:
        os.write(writer, b"!")
        signal.pthread_sigmask(signal.SIG_BLOCK, ())
        signal.raise_signal(signal.SIGUSR2)
        return 7

    started = process.spawn(child, ignored=(signal.SIGUSR2,))
    started.send_signal(signal.SIGUSR2)
    assert os.read(reader, 1) == b"!"
    assert started.wait() == 7
    os.close(reader)
    os.close(writer)


def test_where_close_range_is_missing_it_is_looked_at_what_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def child() -> int:
        monkeypatch.setattr(process, "_LIBC", object())
        kept, lost = os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)
        process.close_all_but({kept})
        os.fstat(kept)
        try:
            os.fstat(lost)
        except OSError:
            return 0
        return 5

    assert process.spawn(child).wait() == 0
