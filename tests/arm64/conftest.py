"""A virtual machine of ARM64 (qemu-system-aarch64, no KVM): Debian 13 with its own kernels and systemd, and our packages.

Only `make arm64` runs these tests: they take minutes. The machine's disk is made once and kept in the cache; each run works on a
copy. The packages are built from this tree, and installed by apt from a signed repository on a second disk.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import pytest
import yaml
from harness import need
from harness.roots import DEV, TOP, build_root, cached, make

HERE: Final = Path(__file__).parent
SCRIPT: Final = DEV / "build-arm64.sh"
KINDS: Final = {"cloud-arm64": 4096, "arm64-16k": 16384}
"""The kernels that the machine is started with, and the bytes of their pages."""
PATIENCE: Final = 180.0
MOUNTS: Final = "/run/fuse-gated/mnt"
TOKEN: Final = "test-" + hashlib.sha256(b"token of acme").hexdigest()
UNITS: Final = ("fuse-gated.socket", "fuse-gated.service", "fuse-gated-mountd.socket", "fuse-gated-mountd.service")
ADDRESS: Final = "10.0.2.15"
"""Where qemu's user network takes the machine to be."""
FIGURES: Final[dict[tuple[str, str], str]] = {}
"""(what, kernel): what was measured."""

Value = TypeVar("Value")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "machine" in metafunc.fixturenames:
        kinds = [*KINDS][: 1 if "only_small_pages" in metafunc.fixturenames else None]
        metafunc.parametrize("machine", kinds, indirect=True, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "FUSE_GATED_ARM64" not in os.environ:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason="starts a virtual machine, which takes minutes: make arm64"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if FIGURES:
        terminalreporter.section("ARM64, emulated")
        names = list(dict.fromkeys(what for what, _ in FIGURES))
        kinds = [kind for kind in KINDS if any(kind == measured for _, measured in FIGURES)]
        for row in [["", *kinds], *([name, *(FIGURES.get((name, kind), "") for kind in kinds)] for name in names)]:
            terminalreporter.write_line(f"{row[0]:52}" + "".join(f"{cell:>24}" for cell in row[1:]))


def until(condition: Callable[[], Value], what: str, patience: float = PATIENCE) -> Value:
    """The first true value of `condition`. What happens in the machine has no descriptor here to wait for."""
    end = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {patience:g} s: {what}"
        time.sleep(0.2)
    return value


class Done(NamedTuple):
    status: int
    stdout: str
    stderr: str
    seconds: float


class Disk:
    """The machine's disk, for one run, and what it is to be started with."""

    def __init__(self, made: Path, work: Path) -> None:
        self.made, self.work = made, work
        self.disk = work / "disk.img"
        subprocess.run(["cp", "--sparse=always", made / "disk.img", self.disk], check=True)
        self.share = work / "share.img"

    def fill_share(self) -> None:
        """What the machine sees at /srv: our packages, and this tree with its tests."""
        tree = self.work / "share"
        tree.mkdir()
        where = [] if (root := build_root()) is None else ["--root", str(root)]
        quick = {**os.environ, "DEB_BUILD_OPTIONS": "nocheck", "SIGNING_HOME": str(self.work / "key")}
        _make("build-deb.sh", *where, "--output", str(self.work / "deb"), environment=quick)
        packages = sorted(map(str, (self.work / "deb").glob("*.deb")))
        _make("build-repo.sh", *where, "--output", str(tree / "repo"), *packages, environment=quick)
        subprocess.run([DEV / "copy-source.sh", tree / "source"], check=True)
        shutil.copy(HERE / "guest.py", tree)
        with self.share.open("wb") as image:
            image.truncate(128 * 2**20)
        subprocess.run(["mkfs.ext4", "-q", "-L", "SHARE", "-d", tree, self.share], check=True)
        shutil.rmtree(tree)


def _make(script: str, *arguments: str, environment: dict[str, str]) -> None:
    done = subprocess.run([str(DEV / script), *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"


class Client:
    """`fuse-gate export` as a unit of the machine's."""

    def __init__(self, machine: "Machine", name: str) -> None:
        self.machine, self.name, self.unit = machine, name, f"client-{name}.service"
        self.export, self.mount = f"/var/tmp/{name}", f"{MOUNTS}/acme/{name}"
        self._output = f"/tmp/client-{name}.json"
        machine.run("mkdir", "-p", self.export)
        machine.run("chmod", "777", self.export)
        machine.run("rm", "-f", self._output)
        # Emulated, a server's first start may take longer than a client waits: it tries again.
        settings = [f"StandardOutput=append:{self._output}", "StandardError=journal", "Restart=on-failure", "RestartSec=1"]
        properties = [f"--property={setting}" for setting in [*settings, "StartLimitIntervalSec=0"]]
        command = ["fuse-gate", "export", self.export, "--server", "ws://127.0.0.1:7433", "--token-file", "/etc/token"]
        command += ["--name", name, "--json"]
        machine.run("systemd-run", f"--unit={self.unit}", "--remain-after-exit", *properties, "--", *command)

    def events(self) -> list[dict[str, Any]]:
        said = self.machine.run("cat", self._output, check=False).stdout
        return [json.loads(line) for line in said.splitlines(keepends=True) if line.endswith("\n")]

    def wait_for(self, event: str) -> dict[str, Any]:
        def journal() -> str:
            return self.machine.run("journalctl", "--no-pager", "--lines=40", "-u", self.unit, "-u", "fuse-gated*").stdout

        try:
            return until(lambda: next((said for said in self.events() if said["event"] == event), None), event)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{journal()}") from None

    def mounted(self) -> "Client":
        self.wait_for("mounted")
        return self

    def stop(self) -> None:
        self.machine.run("systemctl", "stop", self.unit, check=False)
        self.machine.run("systemctl", "reset-failed", self.unit, check=False)


class Machine:
    """The virtual machine, running."""

    def __init__(self, kind: str, channel: socket.socket, port: int) -> None:
        self.kind, self.port = kind, port
        self._channel = channel
        self._answers = channel.makefile("rb")
        self._clients: list[Client] = []

    def wait_for_boot(self) -> None:
        self._channel.settimeout(300)
        assert self._answers.readline() == b"{}\n"
        state = self.run("systemctl", "is-system-running", "--wait", check=False).stdout
        assert state == "running\n", self.run("systemctl", "--failed").stdout

    def run(self, *command: str, check: bool = True, timeout: float = 300) -> Done:
        """Run a command as root; its output as text."""
        self._channel.settimeout(timeout + 30)
        self._channel.sendall(json.dumps({"command": command, "timeout": timeout}).encode() + b"\n")
        done = Done(**json.loads(self._answers.readline()))
        assert not check or done.status == 0, f"{' '.join(command)}: {done.status}\n{done.stdout}{done.stderr}"
        return done

    def shell(self, script: str, check: bool = True) -> Done:
        return self.run("sh", "-euc", script, check=check)

    def run_as(self, user: str, *command: str, check: bool = True) -> Done:
        """As a service of that user's that is sandboxed as services are: it can write nowhere."""
        sandbox = ["ProtectSystem=strict", "ProtectHome=yes", "PrivateTmp=yes", "PrivateDevices=yes", "NoNewPrivileges=yes"]
        properties = [f"--property={setting}" for setting in [f"User={user}", *sandbox]]
        return self.run("systemd-run", "--wait", "--pipe", "--quiet", "--collect", *properties, "--", *command, check=check)

    def run_as_person(self, user: str, *command: str, check: bool = True) -> Done:
        """As somebody who has logged in."""
        return self.run("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--", *command, check=check)

    def write(self, path: str, text: str, mode: str = "644", group: str = "root") -> None:
        script = 'mkdir -p "${1%/*}"; printf %s "$2" >"$1"; chmod "$3" "$1"; chgrp "$4" "$1"'
        self.run("sh", "-euc", script, "sh", path, text, mode, group)

    def show(self, unit: str, name: str) -> str:
        return self.run("systemctl", "show", f"--property={name}", "--value", unit).stdout.strip()

    def main_pid(self, unit: str) -> int:
        return int(self.show(unit, "MainPID"))

    def workers(self) -> list[int]:
        """The pids of the daemon's children."""
        daemon = self.main_pid("fuse-gated.service")
        return [int(pid) for pid in self.run("pgrep", "-P", str(daemon), check=False).stdout.split()] if daemon else []

    def mounts(self) -> list[str]:
        lines = self.run("cat", "/proc/self/mountinfo").stdout.splitlines()
        return [path for path in (line.split()[4] for line in lines) if path.startswith(f"{MOUNTS}/")]

    def ours(self) -> list[str]:
        """Processes of fuse-gated, daemon, mount keeper and workers."""
        return self.run("pgrep", "-af", r"[/ ]fuse-gated(-mountd)?( |$)", check=False).stdout.splitlines()

    def slice_file(self, name: str) -> str:
        """A file of our slice's control group (Documentation/admin-guide/cgroup-v2.rst)."""
        return self.run("cat", f"/sys/fs/cgroup{self.show('fuse-gated.slice', 'ControlGroup')}/{name}").stdout

    def bound(self, *limits: str) -> None:
        """Limits of all that fuse-gated is, as the operator sets them, until the end of the test."""
        self.run("systemctl", "set-property", "--runtime", "fuse-gated.slice", *limits)

    def client(self, name: str = "web") -> Client:
        self._clients.append(Client(self, name))
        return self._clients[-1]

    def begin(self) -> None:
        everything = {"path": "/**", "allow": ["read", "write", "execute", "delete"]}
        rules = [{"path": "/secret*", "deny": ["read", "write"]}, everything]
        tokens = [{"sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}]
        policy = {"tenants": {"acme": {"tokens": tokens, "users": ["reader"], "rules": rules}}}
        self.write("/etc/fuse-gated/policy.yaml", yaml.safe_dump(policy), "640", "fuse-gated")
        self.write("/etc/token", TOKEN, "600")
        self.shell("id reader >/dev/null 2>&1 || useradd --system reader; id other >/dev/null 2>&1 || useradd --system other")
        self.run("systemctl", "start", "fuse-gated.socket", "fuse-gated-mountd.socket")

    def end(self) -> None:
        """Stop everything; whatever is left is a fault."""
        for client in self._clients:
            client.stop()
        self._clients.clear()
        self.run("systemctl", "stop", *UNITS)
        self.shell("rm -rf /run/systemd/system.control/fuse-gated.slice.d /run/systemd/system/fuse-gated*.d")
        self.run("systemctl", "daemon-reload")
        left = [*self.ours(), *self.mounts(), *self.run("ls", MOUNTS).stdout.split()]
        assert left == [], "left behind"
        self.run("systemctl", "start", "fuse-gated.socket", "fuse-gated-mountd.socket")


@contextlib.contextmanager
def booted(disk: Disk, kind: str) -> Iterator[Machine]:
    """The machine with one of its kernels, until it is switched off in order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = disk.work / "guest"
    command = ["qemu-system-aarch64", "-M", "virt", "-cpu", "max,pauth-impdef=on", "-smp", "2", "-m", "2048"]
    command += ["-accel", "tcg,thread=multi"]
    command += ["-nodefaults", "-display", "none", "-serial", f"file:{disk.work}/console", "-append", "console=ttyAMA0 quiet"]
    command += ["-kernel", f"{disk.made}/{kind}.kernel", "-initrd", f"{disk.made}/{kind}.initrd", "-device", "virtio-serial-pci"]
    command += ["-drive", f"file={disk.disk},format=raw,if=none,id=disk,cache=unsafe", "-device", "virtio-blk-pci,drive=disk"]
    command += ["-drive", f"file={disk.share},format=raw,if=none,id=share,readonly=on", "-device", "virtio-blk-pci,drive=share"]
    command += ["-chardev", f"socket,path={path},server=on,wait=on,id=port", "-device", "virtserialport,chardev=port,name=guest"]
    # No way out; one way in.
    network = f"user,id=network,restrict=on,hostfwd=tcp:127.0.0.1:{port}-{ADDRESS}:7433"
    command += ["-netdev", network, "-device", "virtio-net-pci,netdev=network,romfile="]
    with subprocess.Popen(command) as running:
        try:
            with socket.socket(socket.AF_UNIX) as channel:
                until(lambda: path.exists() or running.poll() is not None, "qemu", 30)
                assert running.poll() is None, "qemu did not start"
                channel.connect(str(path))
                machine, began = Machine(kind, channel, port), time.monotonic()
                machine.wait_for_boot()
                FIGURES["boot, until systemd is done", kind] = f"{time.monotonic() - began:.0f} s"
                yield machine
                machine.run("systemctl", "--no-block", "poweroff")
                running.wait(120)
        finally:
            running.kill()
            path.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def disk() -> Iterator[Disk]:
    need("root", "mmdebstrap", "qemu-system-aarch64", "arch-test", "mkfs.ext4", "unshare", "nsenter")
    # What it is made of: the script, and the packages that it takes from there.
    needed = re.findall(r"^ (python3-[a-z0-9-]+|fuse3)\b", (TOP / "debian/control").read_text(), re.MULTILINE)
    made = cached("arm64", SCRIPT.read_text() + " ".join(sorted(set(needed))))
    make(made, SCRIPT)
    # On a disk: beneath /tmp there may be memory only.
    with tempfile.TemporaryDirectory(prefix="fuse-gated-arm64-", dir="/var/tmp") as work:
        Path(work).chmod(0o755)
        disk = Disk(made, Path(work))
        disk.fill_share()
        yield disk


@pytest.fixture(scope="session")
def machine(request: pytest.FixtureRequest, disk: Disk) -> Iterator[Machine]:
    """The machine with fuse-gated installed, as apt leaves it; started again with the other kernel it has it still."""
    with booted(disk, request.param) as machine:
        if machine.run("dpkg", "-s", "fuse-gated", check=False).status != 0:
            install(machine)
        yield machine


SOURCES: Final = "/etc/apt/sources.list.d/fuse-gated.sources"


def install(machine: Machine) -> None:
    text = "Types: deb\nURIs: file:/srv/repo\nSuites: ./\nSigned-By: /usr/share/keyrings/fuse-gated.gpg\n"
    machine.run("install", "-m", "644", "/srv/repo/fuse-gated.gpg", "/usr/share/keyrings/")
    machine.write(SOURCES, text)
    # Debian's own lists are there from when the disk was made, and there is no network to renew them by.
    only_ours = ["-o", f"Dir::Etc::sourcelist={SOURCES}", "-o", "Dir::Etc::sourceparts=-", "-o", "APT::Get::List-Cleanup=0"]
    machine.run("apt-get", "update", *only_ours)
    for package in ("fuse-gated", "fuse-gated-client"):
        done = machine.run("apt", "install", "-y", package)
        FIGURES[f"apt install {package}", machine.kind] = f"{done.seconds:.0f} s"


@pytest.fixture
def service(machine: Machine) -> Iterator[Machine]:
    """The machine with one tenant. After the test nothing of fuse-gated may run or be mounted."""
    machine.begin()
    yield machine
    machine.end()


@pytest.fixture
def only_small_pages() -> None:
    """For what is the same with every kernel: once is enough."""


@pytest.fixture
def figures() -> Callable[[Machine, str, str], None]:
    """Write a figure down for the table at the end: of which machine, what, and how much."""

    def note(machine: Machine, what: str, value: str) -> None:
        FIGURES[what, machine.kind] = value

    return note


@pytest.fixture
def outside(service: Machine, tmp_path: Path) -> Iterator[Callable[[Path], str]]:
    """Exports a directory of this machine, by this machine's Python: gives the mount in the virtual one."""
    interface = next(name for name in service.run("ls", "/sys/class/net").stdout.split() if name != "lo")
    service.shell(f"ip address replace {ADDRESS}/24 dev {interface}; ip link set {interface} up")
    text = "[Socket]\nListenStream=\nListenStream=0.0.0.0:7433\nListenSequentialPacket=/run/fuse-gated/control.sock\n"
    service.write("/run/systemd/system/fuse-gated.socket.d/test.conf", text)
    service.shell("systemctl daemon-reload; systemctl stop fuse-gated.service; systemctl restart fuse-gated.socket")
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    running: list[subprocess.Popen[str]] = []

    def attempt(directory: Path) -> str | None:
        program = [sys.executable, "-m", "fuse_gated.commands.fuse_gate", "export", str(directory), "--name", "outside", "--json"]
        program += ["--server", f"ws://127.0.0.1:{service.port}", "--token-file", str(token)]
        running.append(subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=TOP))
        assert running[-1].stdout is not None
        events = (json.loads(line) for line in running[-1].stdout)
        return next((str(said["path"]) for said in events if said["event"] == "mounted"), None)

    def export(directory: Path) -> str:
        # As above: the server's first start may take longer than a client waits.
        return until(lambda: attempt(directory), "the mount") or ""

    yield export
    for process in running:
        process.terminate()
        process.wait(PATIENCE)
        assert process.stdout is not None
        process.stdout.close()
