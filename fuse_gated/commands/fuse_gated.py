"""fuse-gated: the server, in the foreground."""

import argparse
import os
import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from fuse_gated import __version__, standalone
from fuse_gated.commands import places
from fuse_gated.config.settings import Tls
from fuse_gated.daemon import Daemon
from fuse_gated.edge import etc, libfuse, process, seccomp, systemd
from fuse_gated.edge.journal import JournalSocket, open_journal
from fuse_gated.errors import ConfigurationError, GateError, OperatorError
from fuse_gated.tenants import Tenants

PROGRAM: Final = "fuse-gated"


def parser() -> argparse.ArgumentParser:
    """The command line, from which completion and man page are made too."""
    made = argparse.ArgumentParser(prog=PROGRAM, description="Serve the mounts of remote clients, every operation past the gate.")
    made.add_argument("--etc", type=Path, default=places.ETC, metavar="DIR", help="configuration (%(default)s)")
    runtime = places.own_runtime()
    made.add_argument("--runtime", type=Path, default=runtime, metavar="DIR", help="mounts and sockets (%(default)s)")
    where = "where clients connect (127.0.0.1:7433), unless systemd passes sockets"
    made.add_argument("--listen", metavar="HOST:PORT", help=where)
    made.add_argument("--version", action="version", version=f"fuse-gated {__version__}")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 after an orderly end, 1 failed, 2 usage, 4 configuration at fault."""
    arguments = parser().parse_args(argv)
    try:
        return _serve(arguments.etc, arguments.runtime, arguments.listen)
    except GateError as error:
        return _complain(error, arguments.etc)


def _complain(error: GateError, directory: Path) -> int:
    faults = error.faults if isinstance(error, ConfigurationError) else ()
    for fault in faults:
        process.tell(PROGRAM, fault)
    # Most faults name their file as it is called in there.
    process.tell(PROGRAM, f"{directory}: {error}" if faults else str(error))
    return error.exit_status


def _serve(directory: Path, runtime: Path, listen: str | None) -> int:
    settings = etc.read_settings(directory)
    # Read once here, so that faults are told before anything runs.
    Tenants.read(directory)
    if settings.seccomp:
        # Now, while files can be opened: a caged worker cannot import, nor can the user that the daemon becomes perhaps.
        seccomp.prepare()
    tls = _tls_context(settings.tls) if settings.tls is not None else None
    # The daemon runs as another user, who may not be allowed to walk to the directory: it gets it open.
    opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    readable = Path(f"/proc/self/fd/{opened}")

    def run_daemon(parts: standalone.DaemonParts) -> int:
        # Each worker opens its own. One that is missing is told here, before anybody comes; and what 'auto' means is settled,
        # so that all records go to one place.
        try:
            journal = open_journal(settings.audit, str(parts.runtime))
            journal.close()
        except OperatorError as error:
            # Not the error's own status, by which the supervisor would start the daemon again and again.
            _complain(error, directory)
            return ConfigurationError.exit_status
        audit = msgspec.structs.replace(settings.audit, to="journal" if isinstance(journal, JournalSocket) else "file")
        try:
            return Daemon(parts, msgspec.structs.replace(settings, audit=audit), readable, tls).run()
        except ConfigurationError as error:
            return _complain(error, directory)

    passed = systemd.sort_sockets(systemd.take_sockets())
    if passed.keeper is not None:
        return run_daemon(standalone.unit_parts(runtime, passed))
    listeners = passed.listeners or standalone.bind(listen or settings.listen)
    if os.geteuid() == 0:
        if "kernel" in settings.drivers:
            _warn_of_device()
        try:
            return standalone.supervise(settings, runtime, listeners, run_daemon)
        finally:
            for listener in listeners:
                listener.close()
    parts = standalone.unprivileged_parts(runtime, listeners)
    try:
        return run_daemon(parts)
    finally:
        standalone.release(parts)


def _warn_of_device() -> None:
    """Not a refusal: a module may be loaded later. But who starts the server hears of it before the first client does."""
    try:
        os.close(os.open(libfuse.DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        hint = "modprobe fuse; a container needs --device /dev/fuse --cap-add SYS_ADMIN"
        process.tell(PROGRAM, f"warning: nothing can be mounted: {libfuse.DEVICE}: {error.strerror} ({hint})")


def _tls_context(tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(name for name in (tls.certificate, tls.key, tls.client_ca) if name)
        raise ConfigurationError(
            f"TLS cannot be set up from {files}: {error.strerror or error}",
            "they are PEM files: a certificate with its chain, its key, and the CA of the clients' certificates",
        ) from None
    return context


__all__ = ["main", "parser"]

if __name__ == "__main__":
    sys.exit(main())
