"""The installation, for `fuse-gatectl doctor`: the configuration, the runtime directory, the daemon."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from fuse_gated import __version__, control
from fuse_gated.commands.check import examine
from fuse_gated.commands.diagnosis import Check, fail, ok, warn
from fuse_gated.commands.output import shown_time
from fuse_gated.errors import GateError


def checks(etc: Path, runtime: str) -> Iterator[Check]:
    """All checks of the installation."""
    yield from configuration(etc)
    yield runtime_directory(Path(runtime))
    yield daemon(runtime)


def configuration(etc: Path) -> Iterator[Check]:
    findings = examine(etc)
    for fault in findings.faults:
        yield fail("configuration", fault, f"mend it, then: fuse-gatectl check {etc}")
    for warning in findings.warnings:
        yield warn("configuration", warning, "look whether it is meant")
    if not findings.faults and not findings.warnings:
        yield ok("configuration", f"{etc} is right")


def runtime_directory(runtime: Path) -> Check:
    """Whoever can write there can take the daemon's place."""
    name = "runtime directory"
    try:
        status = runtime.lstat()
    except FileNotFoundError:
        return ok(name, f"{runtime} is not there yet: the daemon makes it")
    except OSError as error:
        return fail(name, f"{runtime}: {error.strerror}", "name another: --runtime DIR")
    if not stat.S_ISDIR(status.st_mode):
        return fail(name, f"{runtime} is not a directory", f"rm {runtime}, and start the daemon again")
    if status.st_uid not in (0, os.geteuid()):
        return fail(
            name, f"{runtime} belongs to uid {status.st_uid}", "another user's mounts: name a directory of ours with --runtime"
        )
    if status.st_mode & 0o022:
        return fail(name, f"others can write into {runtime} (mode {stat.S_IMODE(status.st_mode):04o})", f"chmod go-w {runtime}")
    return ok(name, f"{runtime} is ours")


def daemon(runtime: str) -> Check:
    try:
        status = control.convert_status(control.call(runtime, "status"))
    except GateError as error:
        return warn("daemon", error.message, error.hint)
    told = f"version {status.version}, pid {status.pid}, up {shown_time(status.uptime)}, sessions: {status.sessions}"
    if status.version != __version__:
        return warn("daemon", f"{told}; this is {__version__}", "the package was upgraded: systemctl restart fuse-gated")
    if "kernel" in status.drivers and not status.mountd:
        return fail("daemon", f"{told}; the mount keeper does not answer", "systemctl restart fuse-gated-mountd")
    return ok("daemon", f"{told}, drivers: {', '.join(status.drivers)}")
