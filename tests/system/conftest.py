"""fuse-gated as it is installed, under a real systemd: a guest of Debian's own packages, in namespaces (guest.sh).

Only `make system` runs these tests: they take a root filesystem of 200 MB, which is made once and kept in the cache.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
import yaml
from harness import need

if "FUSE_GATED_SYSTEM" not in os.environ:
    collect_ignore_glob = ["test_*.py"]

TOP: Final = Path(__file__).parents[2]
SUITE: Final = "trixie"
PACKAGES: Final = (
    "systemd,systemd-sysv,dbus,libnss-systemd,libpam-systemd,fuse3,acl,iproute2,procps,util-linux,openssl,apparmor,"
    "python3,python3-websockets,python3-msgspec,python3-yaml,python3-systemd,python3-sdnotify,python3-seccomp,python3-pylibacl,"
    "python3-prometheus-client"
)
"""What the guest has: systemd, and what the packages of fuse-gated depend on."""
PATIENCE: Final = 30.0
ETC: Final = "etc/fuse-gated"
MOUNTS: Final = "/run/fuse-gated/mnt"
TOKEN: Final = "test-" + hashlib.sha256(b"token of acme").hexdigest()
ALLOW_ALL: Final = {"path": "/**", "allow": ["read", "write", "execute", "delete"]}
PROGRAMS: Final = {"fuse-gate": "fuse_gate", "fuse-gatectl": "fuse_gatectl", "fuse-gated": "fuse_gated"}
UNITS: Final = ("fuse-gated.socket", "fuse-gated.service", "fuse-gated-mountd.socket", "fuse-gated-mountd.service")

Value = TypeVar("Value")


def until(condition: Callable[[], Value], what: str, patience: float = PATIENCE) -> Value:
    """The first true value of `condition`. What happens in the guest has no descriptor here to wait for."""
    end = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {patience:g} s: {what}"
        time.sleep(0.05)
    return value


class Client:
    """`fuse-gate export` as a unit of the guest's."""

    def __init__(self, guest: "Guest", name: str, *options: str, server: str = "ws://127.0.0.1:7433", export: str = "") -> None:
        self.guest, self.name, self.unit = guest, name, f"client-{name}.service"
        self.export = export or f"/srv/{name}"
        self._output = guest.path(f"/tmp/client-{name}.json")
        self._output.unlink(missing_ok=True)
        guest.path(self.export).mkdir(parents=True, exist_ok=True)
        output = [f"--property=StandardOutput=file:/tmp/client-{name}.json", "--property=StandardError=journal"]
        started = ["systemd-run", f"--unit={self.unit}", "--remain-after-exit", *output, "--", "fuse-gate", "export", self.export]
        guest.run(*started, "--server", server, "--token-file", "/etc/token", "--name", name, "--json", *options)

    @property
    def mount(self) -> str:
        """Where the guest's programs see it."""
        return f"{MOUNTS}/acme/{self.name}"

    def events(self) -> list[dict[str, Any]]:
        text = self._output.read_text() if self._output.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def wait_for(self, event: str) -> dict[str, Any]:
        return until(lambda: next((said for said in self.events() if said["event"] == event), None), f"{event}: {self.journal()}")

    def wait_for_end(self) -> int:
        """Its exit status (systemd.exec(5))."""
        until(lambda: self.guest.show(self.unit, "SubState") in ("exited", "failed", "dead"), "the client's end")
        return int(self.guest.show(self.unit, "ExecMainStatus"))

    def journal(self) -> str:
        return self.guest.run("journalctl", "--no-pager", "-u", self.unit, check=False).stdout

    def mounted(self) -> "Client":
        self.wait_for("mounted")
        return self

    def stop(self) -> None:
        self.guest.run("systemctl", "stop", self.unit, check=False)
        self.guest.run("systemctl", "reset-failed", self.unit, check=False)


class Guest:
    """A running guest."""

    def __init__(self, leader: int, upper: Path) -> None:
        self.leader = leader
        self.upper = upper
        """What the guest has written to its root filesystem; to be read from outside even when it has ended."""
        self._clients: list[Client] = []

    def path(self, path: str) -> Path:
        """A file of the guest's, from outside."""
        return Path(f"/proc/{self.leader}/root/{path.lstrip('/')}")

    def run(self, *command: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run a command in the guest, as root; its output as text."""
        enter = ["nsenter", f"--target={self.leader}", "-m", "-u", "-i", "-n", "-p", "-C", "--"]
        environment = {"PATH": "/usr/sbin:/usr/bin", "LANG": "C.UTF-8"}
        done = subprocess.run([*enter, *command], capture_output=True, text=True, timeout=timeout, env=environment)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def run_as(self, user: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """As a service of that user's that is sandboxed as services are."""
        sandbox = ["ProtectSystem=strict", "ProtectHome=yes", "PrivateTmp=yes", "PrivateDevices=yes", "NoNewPrivileges=yes"]
        properties = [f"--property={setting}" for setting in [f"User={user}", *sandbox]]
        return self.run("systemd-run", "--wait", "--pipe", "--quiet", "--collect", *properties, "--", *command, check=check)

    def show(self, unit: str, name: str) -> str:
        """A property of a unit's."""
        return self.run("systemctl", "show", f"--property={name}", "--value", unit).stdout.strip()

    def is_active(self, unit: str) -> bool:
        return self.show(unit, "ActiveState") == "active"

    def main_pid(self, unit: str) -> int:
        return int(self.show(unit, "MainPID"))

    def workers(self) -> list[int]:
        """The pids of the daemon's children."""
        daemon = self.main_pid("fuse-gated.service")
        return [int(pid) for pid in self.run("pgrep", "-P", str(daemon), check=False).stdout.split()] if daemon else []

    def ours(self) -> list[str]:
        """Processes of fuse-gated, daemon, mount keeper and workers."""
        return self.run("pgrep", "-af", r"[/ ]fuse-gated(-mountd)?( |$)", check=False).stdout.splitlines()

    def mounts(self) -> list[str]:
        lines = self.path("/proc/1/mountinfo").read_text().splitlines()
        return [path for path in (line.split()[4] for line in lines) if path.startswith(f"{MOUNTS}/")]

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """Journal entries (journalctl(1), --output=json), oldest first."""
        self.run("journalctl", "--sync")
        return [json.loads(line) for line in self.run("journalctl", "-o", "json", "--all", *matches).stdout.splitlines()]

    def write(self, path: str, text: str, mode: int = 0o644, group: str = "root") -> None:
        target = self.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)
        self.run("chgrp", group, path)

    @staticmethod
    def policy(*rules: dict[str, Any], **changes: Any) -> dict[str, Any]:
        """One tenant, acme, with the user reader; everything is allowed after `rules`."""
        tokens = [{"sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}]
        return {"tenants": {"acme": {"tokens": tokens, "users": ["reader"], "rules": [*rules, ALLOW_ALL], **changes}}}

    def write_policy(self, policy: str | dict[str, Any]) -> None:
        text = policy if isinstance(policy, str) else yaml.safe_dump(policy)
        self.write(f"/{ETC}/policy.yaml", text, 0o640, "fuse-gated")

    def write_settings(self, settings: dict[str, Any]) -> None:
        self.write(f"/{ETC}/fuse-gated.yaml", yaml.safe_dump(settings), 0o640, "fuse-gated")

    def drop_in(self, unit: str, text: str) -> None:
        """A change of a unit that lasts for one test."""
        self.write(f"/run/systemd/system/{unit}.d/test.conf", text)
        self.run("systemctl", "daemon-reload")

    def client(self, name: str = "web", *options: str, **more: str) -> Client:
        self._clients.append(Client(self, name, *options, **more))
        return self._clients[-1]

    def begin(self) -> None:
        """Everything as after the installation: both sockets listen, nothing runs."""
        for changed in self.path("/run/systemd/system").glob("fuse-gated*.d"):
            shutil.rmtree(changed)
        self.run("systemctl", "daemon-reload")
        self.run("systemctl", "reset-failed", *UNITS, check=False)
        self.write_policy(self.policy())
        self.write_settings({})
        self.run("systemctl", "start", "fuse-gated.socket", "fuse-gated-mountd.socket")

    def end(self) -> None:
        """Stop everything; whatever is left is a fault."""
        for client in self._clients:
            client.stop()
        self._clients.clear()
        self.run("systemctl", "stop", *UNITS)
        left = [*self.ours(), *self.mounts(), *os.listdir(self.path(MOUNTS))]
        assert left == [], "left behind"


@pytest.fixture(scope="session")
def root_filesystem() -> Path:
    """Debian with what fuse-gated depends on. Kept, and made anew when what it is made of changes."""
    need("root", "fuse", "mmdebstrap", "unshare", "nsenter", "ip")
    key = hashlib.sha256(f"{SUITE} {PACKAGES}".encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fuse-gated"
    made = cache / f"{SUITE}-{key}"
    if not made.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as place:
            options = ["--quiet", "--variant=minbase", f"--include={PACKAGES}"]
            subprocess.run(["mmdebstrap", *options, SUITE, f"{place}/root", mirror()], check=True)
            Path(place, "root").rename(made)
    return made


def mirror() -> str:
    """Where this machine gets Debian's packages from."""
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    found = [uri for origin, _, uri in (line.partition(" ") for line in listed) if origin == "Debian" and "security" not in uri]
    assert found, "apt-get update has to have been run once"
    return found[0]


def install(root: Path) -> None:
    """Put the files where the packages put them; the script is the packages' own."""
    libraries = root / "usr/lib/python3/dist-packages"
    shutil.copytree(TOP / "fuse_gated", libraries / "fuse_gated", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "usr/bin").mkdir(parents=True)
    for name, module in PROGRAMS.items():
        program = root / "usr/bin" / name
        program.write_text(f"#!/usr/bin/python3 -I\nfrom fuse_gated.commands.{module} import main\nraise SystemExit(main())\n")
        program.chmod(0o755)
    subprocess.run([TOP / "packaging/dev/install-files.sh", root], check=True, stdout=subprocess.DEVNULL)


def configure(guest: Guest) -> None:
    """What the package's postinst does, and the users and files of the tests."""
    guest.run("systemd-sysusers", "/usr/lib/sysusers.d/fuse-gated.conf")
    guest.run("systemd-tmpfiles", "--create", "/usr/lib/tmpfiles.d/fuse-gated.conf")
    guest.run("journalctl", "--update-catalog")
    for user in ("reader", "other"):
        guest.run("useradd", "--system", user)
    guest.write("/etc/token", TOKEN, 0o600)
    guest.run("systemctl", "daemon-reload")
    guest.run("systemctl", "enable", "fuse-gated.socket", "fuse-gated-mountd.socket")


@contextlib.contextmanager
def boot(root_filesystem: Path, name: str = "fuse-gated") -> Iterator[Guest]:
    """A guest with fuse-gated installed, for as long as the block runs; of it stays what is in `Guest.upper` until then."""
    with tempfile.TemporaryDirectory(prefix="fuse-gated-system-") as work:
        Path(work).chmod(0o755)
        install(Path(work, "upper"))
        script = [str(Path(__file__).parent / "guest.sh"), str(root_filesystem), work, f"{name}-{os.getpid()}"]
        with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            assert running.stdin is not None
            leader = running.stdout.readline().strip()
            assert leader, "the guest did not boot"
            guest = Guest(int(leader), Path(work, "upper"))
            try:
                configure(guest)
                yield guest
            finally:
                running.stdin.close()
        # Roots of services that systemd made unreadable must not stay.
        with contextlib.suppress(OSError):
            shutil.rmtree(work)


@pytest.fixture(scope="session")
def guest(root_filesystem: Path) -> Iterator[Guest]:
    """A guest with fuse-gated installed."""
    with boot(root_filesystem) as guest:
        yield guest


@pytest.fixture
def mortal(root_filesystem: Path) -> Iterator[Guest]:
    """A guest of one test's own, which may end it."""
    with boot(root_filesystem, "fuse-gated-mortal") as guest:
        yield guest


@pytest.fixture
def service(guest: Guest) -> Iterator[Guest]:
    """The guest with fuse-gated as after its installation. After the test nothing of it may run or be mounted."""
    guest.begin()
    yield guest
    guest.end()
