"""The machine, for `fuse-gatectl doctor`: kernel, FUSE, fusermount3, journal, AppArmor.

Files are looked for beneath `Machine.root`, so that the checks can be tried on any machine's.
"""

import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec

from fuse_gated.commands.diagnosis import Check, fail, ok, warn, worse
from fuse_gated.edge import journal
from fuse_gated.edge.fuse_kernel import MAJOR, MINOR, OLDEST_MINOR
from fuse_gated.edge.fuse_probe import Offer
from fuse_gated.edge.syscalls import openat2
from fuse_gated.errors import GateError

_REQUEST_TIMEOUTS = ("default_request_timeout", "max_request_timeout")


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What is looked at. `offer` is what the kernel said of its FUSE, or why it could not be asked. `path` is where programs
    are looked for (None: as always)."""

    root: Path
    release: str
    is_root: bool
    offer: Offer | GateError
    path: str | None = None


def checks(machine: Machine) -> Iterator[Check]:
    """All checks of the machine."""
    yield _kernel(machine)
    yield _protocol(machine)
    yield _resend(machine)
    yield _filesystem(machine)
    yield _device(machine)
    yield _fusermount3(machine)
    yield _allow_other(machine)
    yield _openat2()
    yield _journal(machine)
    yield from _timeouts(machine)
    yield _apparmor(machine)


def _version(machine: Machine) -> tuple[int, int]:
    match = re.match(r"([0-9]+)\.([0-9]+)", machine.release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _kernel(machine: Machine) -> Check:
    if _version(machine) < (5, 6):
        return fail("kernel", f"Linux {machine.release}", "5.6 is the oldest that the server runs on (openat2): upgrade it")
    return ok("kernel", f"Linux {machine.release}")


def _protocol(machine: Machine) -> Check:
    name = "FUSE protocol"
    offer = machine.offer
    if isinstance(offer, GateError):
        return warn(name, f"not asked: {offer.message}", "run as root to see it; Linux 5.6 and later speak at least 7.31")
    spoken = f"{offer.major}.{offer.minor}"
    if (offer.major, offer.minor) < (MAJOR, OLDEST_MINOR):
        return fail(
            name, f"{spoken}, and {MAJOR}.{OLDEST_MINOR} is the oldest that is served", "upgrade the kernel to 5.6 or later"
        )
    if offer.major > MAJOR or offer.minor > MINOR:
        return ok(name, f"{spoken}, used as {MAJOR}.{MINOR}")
    return ok(name, spoken)


def _resend(machine: Machine) -> Check:
    name = "re-sending"
    if isinstance(machine.offer, GateError):
        able, how = _version(machine) >= (6, 9), f"by its version, Linux {machine.release}"
    else:
        able, how = machine.offer.resends, "the kernel says so"
    if able:
        return ok(name, f"requests in flight can be sent again to a successor ({how})")
    return warn(
        name,
        f"FUSE_NOTIFY_RESEND is missing ({how})",
        "a process that dies while it holds a request leaves its caller waiting: Linux 6.9 and later can send it again",
    )


def _filesystem(machine: Machine) -> Check:
    try:
        lines = (machine.root / "proc/filesystems").read_text().splitlines()
    except OSError as error:
        return warn("fuse module", f"/proc/filesystems: {error.strerror}", "mount /proc")
    if any(line.split()[-1:] == ["fuse"] for line in lines):
        return ok("fuse module", "the kernel has the filesystem fuse")
    return fail("fuse module", "the kernel has no filesystem fuse (yet)", "modprobe fuse, and put fuse into /etc/modules-load.d")


def _device(machine: Machine) -> Check:
    path = machine.root / "dev/fuse"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return fail("/dev/fuse", error.strerror or str(error), "modprobe fuse; a container needs --device /dev/fuse")
    if not stat.S_ISCHR(mode):
        return fail("/dev/fuse", "is no character device", "remove it, then modprobe -r fuse; modprobe fuse")
    shown = f"mode {stat.S_IMODE(mode):04o}"
    if not os.access(path, os.R_OK | os.W_OK):
        return fail("/dev/fuse", f"we may not open it ({shown})", "as root: chmod 666 /dev/fuse, as udev does")
    if not mode & stat.S_IWOTH:
        return warn("/dev/fuse", f"only root may open it ({shown})", "the libfuse driver of ordinary users needs mode 0666")
    return ok("/dev/fuse", f"can be opened ({shown})")


def _fusermount3(machine: Machine) -> Check:
    """What mounts for ordinary users. libfuse 2 runs it by its older name, `fusermount`."""
    name = "fusermount3"
    state = worse(fatal=not machine.is_root)
    found = shutil.which("fusermount3", path=machine.path)
    if found is None:
        return Check(name, state, "is not installed", "the libfuse driver of ordinary users needs it: install fuse3")
    for program in (found, shutil.which("fusermount", path=machine.path)):
        if program is None:
            advice = f"libfuse 2 runs it by that name: ln -s {found} {found.removesuffix('3')}"
            return Check(name, state, "there is no fusermount beside it", advice)
        status = os.stat(program)
        if status.st_uid != 0 or not status.st_mode & stat.S_ISUID:
            return Check(name, state, f"{program} is not setuid root", f"chown root {program}; chmod u+s {program}")
    if not (machine.root / "etc/mtab").exists():
        missing = "there is no /etc/mtab, without which it takes no mount away"
        return Check(name, state, missing, "ln -s /proc/self/mounts /etc/mtab")
    return ok(name, f"{found}, setuid root")


def _allow_other(machine: Machine) -> Check:
    name = "user_allow_other"
    lines = (_text(machine.root / "etc/fuse.conf") or "").splitlines()
    if any(line.strip() == "user_allow_other" for line in lines):
        return ok(name, "other users can enter mounts of the libfuse driver")
    if machine.is_root:
        return ok(name, "not set in /etc/fuse.conf: only the libfuse driver of ordinary users would need it")
    return warn(name, "only we can enter mounts of the libfuse driver", "put a line user_allow_other into /etc/fuse.conf")


def _openat2() -> Check:
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        os.close(openat2(root, b".", must_be_directory=True))
    except OSError as error:
        return fail("openat2", error.strerror or str(error), "Linux 5.6 has it; a container's seccomp profile may forbid it")
    finally:
        os.close(root)
    return ok("openat2", "paths can be resolved beneath a directory")


def _journal(machine: Machine) -> Check:
    if _is_socket(machine.root / "run/systemd/journal/socket"):
        return ok("journal", "journald takes audit records")
    return warn(
        "journal", "no journald here", f"audit records go to {journal.LOG_DIRECTORY}/{journal.FILE}, or where audit.file says"
    )


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


def _timeouts(machine: Machine) -> Iterator[Check]:
    """Linux 6.15 and later can be told to abort a mount for one slow request."""
    for name in _REQUEST_TIMEOUTS:
        key = f"fs.fuse.{name}"
        try:
            seconds = int((machine.root / "proc/sys/fs/fuse" / name).read_text())
        except (OSError, ValueError):
            continue
        if seconds:
            yield warn(key, f"{seconds} s, then the kernel aborts the whole mount", f"sysctl {key}=0")
        else:
            yield ok(key, "0: the kernel aborts no mount for a slow request")


def _apparmor(machine: Machine) -> Check:
    """Ubuntu's profile lets fusermount3 mount in a few places only."""
    name = "AppArmor"
    loaded = _text(machine.root / "sys/kernel/security/apparmor/profiles")
    profile = loaded if loaded is not None else _text(machine.root / "etc/apparmor.d/fusermount3")
    if "fusermount3" not in (profile or ""):
        return ok(name, "no profile confines fusermount3")
    if "fuse-gated" in (_text(machine.root / "etc/apparmor.d/local/fusermount3") or ""):
        return ok(name, "the profile of fusermount3 has our rule")
    return warn(
        name,
        "a profile confines fusermount3 to a few places",
        "let /etc/apparmor.d/local/fusermount3 allow <runtime>/mnt/** (the package has the rules for it: include if exists "
        "<abstractions/fuse-gated>), then apparmor_parser -r /etc/apparmor.d/fusermount3",
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
