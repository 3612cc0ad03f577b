"""Processes: forked, watched by pidfd, stripped of rights, and caged before they read what a stranger sent."""

import contextlib
import ctypes
import grp
import os
import pwd
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable, Collection
from types import FrameType, TracebackType
from typing import Final, NoReturn, Self

import msgspec

from fuse_gated.edge.seccomp import load_filter
from fuse_gated.errors import GateError, KernelError, OperatorError

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
# linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NAME: Final = 15
_PR_SET_CHILD_SUBREAPER: Final = 36
_PR_SET_NO_NEW_PRIVS: Final = 38

_SIGNALS: Final = tuple(signal.valid_signals())


def tell(program: str, message: str) -> None:
    """One line on stderr. A stderr that is gone is no reason to stop."""
    with contextlib.suppress(OSError, ValueError):
        print(f"{program}: {message}", file=sys.stderr, flush=True)


def open_standard_descriptors() -> None:
    """/dev/null for those of 0 to 2 that are closed. For a program's first moment: what it opened in their place would be
    written to as stderr, and kept by every cage. Raises OSError."""
    # The lowest that is free is what open(2) gives.
    while (opened := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(opened, True)
    os.close(opened)


class Account(msgspec.Struct, frozen=True):
    """A user of this machine, as passwd(5) has it."""

    name: str
    uid: int
    gid: int


def find_account(name: str) -> Account | None:
    """The user of that name, or none."""
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(name, found.pw_uid, found.pw_gid)


def find_group(name: str) -> int | None:
    """The number of the group of that name, or none."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def groups_of(account: Account) -> list[int]:
    """The groups in which the daemon runs besides its user's own: those that the user has (group(5)), as under systemd, and
    `fuse` where there is one."""
    fuse = find_group("fuse")
    named = {*os.getgrouplist(account.name, account.gid), *(() if fuse is None else (fuse,))}
    return sorted(named - {account.gid})


def drop_to(user: int, group: int, supplementary: Collection[int]) -> None:
    """Become `user` (a uid) in `group` and the `supplementary` groups (gids), for good.

    The kernel then forgets what `die_with_parent` asked for (prctl(2)), so that comes after. Raises OperatorError for uid 0,
    because that would drop nothing, and KernelError when the kernel refuses.
    """
    if user == 0:
        raise OperatorError("nothing is gained by dropping to root", "name another user in fuse-gated.yaml")
    try:
        os.setgroups(sorted(supplementary))
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
    except OSError as error:
        raise KernelError(f"cannot become uid {user}, gid {group}: {error.strerror}", "start fuse-gated as root") from None


def set_name(title: str) -> None:
    """The name that ps -o comm and top show: at most 15 bytes, the rest is cut off (PR_SET_NAME)."""
    name = ctypes.create_string_buffer(os.fsencode(title)[:15])
    _prctl(_PR_SET_NAME, ctypes.addressof(name))


def die_with_parent(parent: int) -> None:
    """SIGTERM for this process when its parent, whose pid is `parent`, ends however it ends (PR_SET_PDEATHSIG).

    A change of the uid cancels it (prctl(2)), so call it after `drop_to`. A parent that is gone already has sent nothing, so
    then the signal comes from here.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        signal.raise_signal(signal.SIGTERM)


def adopt_orphans() -> None:
    """Children of children become children of this process when their parent ends (PR_SET_CHILD_SUBREAPER)."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children() -> list[int]:
    """The pids of this process's children, those that ended and wait to be reaped included (proc(5))."""
    own, found = os.getpid(), []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", "rb") as status:
                # The command stands in parentheses, and may hold spaces and parentheses itself.
                if int(status.read().rpartition(b")")[2].split()[1]) == own:
                    found.append(int(entry))
    return found


def close_all_but(keep: Collection[int]) -> None:
    """Close every descriptor of this process except `keep` and 0 to 2.

    For a process that leaves by os._exit and unwinds no frame of its parent's: an object that still owns a descriptor would
    later close its number, whatever that then is. Where close_range(2) is missing, raises OSError without /proc, because then
    nobody knows what is open.
    """
    low = 3
    for kept in sorted(number for number in set(keep) if number >= low):
        os.closerange(low, kept)
        low = kept + 1
    # To list what is open takes a daemon's child longer than anything else, when the daemon has a thousand sessions.
    if not hasattr(_LIBC, "close_range") or _LIBC.close_range(ctypes.c_uint(low), ctypes.c_uint(2**32 - 1), ctypes.c_int(0)) != 0:
        os.closerange(low, max(map(int, os.listdir("/proc/self/fd"))) + 1)


def be_killed_first(setting: str = "/proc/self/oom_score_adj") -> None:
    """Where memory is short, this process is killed before its parent is: a worker's end costs one session, the daemon's might
    cost all. Takes back what the parent was spared by (OOMScoreAdjust=, systemd.exec(5)), and adds nothing."""
    with contextlib.suppress(OSError):
        # As bytes: a codec may have to be imported, by a process that has dropped the rights to read it.
        with open(setting, "rb") as adjustment:
            spared = int(adjustment.read()) < 0
        if spared:
            with open(setting, "wb") as adjustment:
                adjustment.write(b"0")


class _Scheduling(ctypes.Structure):
    """struct sched_attr (linux/sched/types.h), as it was first."""

    _fields_ = (
        ("size", ctypes.c_uint32), ("policy", ctypes.c_uint32), ("flags", ctypes.c_uint64), ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32), ("runtime", ctypes.c_uint64), ("deadline", ctypes.c_uint64), ("period", ctypes.c_uint64),
    )  # fmt: skip


_SYS_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274}


def take_short_turns(seconds: float) -> bool:
    """Have this thread, and those that it starts, run for so long at a time, and so come to run sooner after it has waited: no
    share of the processor changes (sched_setattr(2); Linux 6.12 heeds it, earlier ones do not). Whether the kernel took it."""
    number = _SYS_SCHED_SETATTR.get(os.uname().machine)
    if number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    wanted = _Scheduling(ctypes.sizeof(_Scheduling), os.SCHED_OTHER, 0, nice, 0, int(seconds * 1e9))
    return bool(_LIBC.syscall(ctypes.c_long(number), ctypes.c_ulong(0), ctypes.byref(wanted), ctypes.c_ulong(0)) == 0)


def cage(keep: Collection[int], *, seccomp: bool) -> None:
    """Leave this process nothing but the descriptors `keep` and 0 to 2, and what can be done with them.

    For a worker, before it reads a peer's first byte. Every module it needs must be imported and every thread started: from
    here on no file opens, and nothing starts. Other processes of the same uid can neither trace it nor read its memory, and
    it leaves no core. With `seccomp`, what edge/seccomp.py does not list fails with EPERM, so that it cannot do to them what
    they cannot do to it; without, a worker that is taken over has all the rights of its uid.

    Raises KernelError or OperatorError; what is not wholly caged must not go on.
    """
    # First of all: who is not dumpable may not write there any more (proc(5)).
    be_killed_first()
    close_all_but(keep)
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if seccomp:
        load_filter()


class Child:
    """A child process, watched and signalled through a pidfd, so that a pid that is used again is never meant (pidfd_open(2))."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._status: int | None = None

    def fileno(self) -> int:
        """Readable once the process has ended."""
        return self._pidfd

    def send_signal(self, number: int) -> None:
        """Nothing happens to a process that has ended."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit status once it has ended (minus the signal that ended it), or None after `timeout` seconds. Reaps it and
        gives up the pidfd."""
        if self._status is not None:
            return self._status
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        if not poll.poll(None if timeout is None else timeout * 1000):
            return None
        ended = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        if ended is None:
            raise AssertionError("waitid without WNOHANG returns what it waited for")
        os.close(self._pidfd)
        self._status = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        return self._status

    def end(self, grace: float) -> int | None:
        """SIGTERM, and SIGKILL after `grace` seconds. The status, as `wait` has it."""
        self.send_signal(signal.SIGTERM)
        status = self.wait(grace)
        if status is None:
            self.send_signal(signal.SIGKILL)
            status = self.wait()
        return status


def spawn(main: Callable[[], int], *, program: str = "fuse-gated", ignored: Collection[int] = ()) -> Child:
    """Fork; the child runs `main` and ends with the exit status it returns, or with that of the GateError it raises.

    In the child, signals that this process handles have their default action, and the `ignored` ones are ignored, from its
    first instruction on. `program` is what its last words begin with.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    # Until the child has handlers of its own, a signal for it would run those of its parent. (Not all signals, of whose numbers
    # Python would make names again: that costs more than the system call.)
    handled = [number for number in _SIGNALS if callable(signal.getsignal(number))]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*handled, *ignored})
    try:
        pid = os.fork()
        if pid == 0:
            _run(main, program, handled, ignored, mask)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return Child(pid)


def _run(
    main: Callable[[], int], program: str, handled: Collection[int], ignored: Collection[int], mask: Collection[int]
) -> NoReturn:
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in handled:
            signal.signal(number, signal.SIG_DFL)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        status = main()
    except GateError as error:
        tell(program, str(error))
        status = error.exit_status
    except BaseException:
        traceback.print_exc()
    finally:
        # Not sys.exit: what the parent registered to happen at its own end must not happen here.
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


class Signals:
    """Signals as something to wait for beside other descriptors: readable when one of `numbers` has come."""

    def __init__(self, *numbers: int) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._old_wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._old_handlers = {number: signal.signal(number, _note) for number in numbers}

    def fileno(self) -> int:
        return self._reader

    def received(self) -> list[int]:
        """The numbers of those that came since the last call."""
        with contextlib.suppress(BlockingIOError):
            return [number for number in os.read(self._reader, 4096) if number in self._old_handlers]
        return []

    def close(self) -> None:
        """Handle them as before."""
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        self.close_descriptors()

    def close_descriptors(self) -> None:
        """In a forked child, which has no use for them."""
        os.close(self._reader)
        os.close(self._writer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _note(_number: int, _frame: FrameType | None) -> None:
    # That there is a handler makes Python write the number to the wake-up descriptor.
    return


def _prctl(option: int, value: int) -> None:
    arguments = [ctypes.c_ulong(number) for number in (value, 0, 0, 0)]
    if _LIBC.prctl(option, *arguments) != 0:
        raise KernelError(f"prctl(2) option {option} was refused: {os.strerror(ctypes.get_errno())}")
