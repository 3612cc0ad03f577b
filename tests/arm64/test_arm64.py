"""The packages on ARM64, as they are installed: the main job, and what only a machine of its own shows."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Machine = Any
Note = Callable[[Machine, str, str], None]

DAEMON, KEEPER, SOCKET = "fuse-gated.service", "fuse-gated-mountd.service", "fuse-gated.socket"
PAGES = {"cloud-arm64": 4096, "arm64-16k": 16384}
OURS = ["fuse-gated.slice", "fuse-gated.socket", DAEMON, "fuse-gated-mountd.socket", KEEPER]
PROBE = Path(__file__).parents[1] / "system/probe.py"
FOREIGN = Path(__file__).with_name("foreign.py")
# Not where another error says as much: nothing is there, or there is no such call.
REFUSALS = {"EPERM", "EACCES", "EROFS", "ENOENT", "ENOSYS", "EAFNOSUPPORT"}


def number(name: str, text: str) -> int:
    """What stands behind a name in one of the kernel's files."""
    found = re.search(rf"^{name}\s+(\d+)$", text, re.MULTILINE)
    assert found is not None, text
    return int(found[1])


def until_gone(machine: Machine, path: str) -> None:
    machine.shell(f'for _ in $(seq 300); do [ -e "{path}" ] || exit 0; sleep 0.1; done; exit 1')


def test_it_is_what_it_says(machine: Machine, figures: Note) -> None:
    assert machine.run("uname", "-m").stdout == "aarch64\n"
    assert int(machine.run("getconf", "PAGESIZE").stdout) == PAGES[machine.kind]
    assert machine.run("cat", "/proc/1/comm").stdout == "systemd\n"
    figures(machine, "kernel", machine.run("uname", "-r").stdout.strip().partition("+")[0])
    figures(machine, "bytes of a page", str(PAGES[machine.kind]))


def test_as_it_is_installed_the_sockets_listen_and_nothing_runs(machine: Machine) -> None:
    """Also after the machine was started again, with another kernel."""
    told = machine.run("apt-cache", "policy", "fuse-gated").stdout
    assert re.search(r"Installed: \S+\n", told)
    assert "file:/srv/repo ./ Packages" in told
    assert machine.run("dpkg", "--verify", "fuse-gated", "fuse-gated-client", "python3-fuse-gated").stdout in (
        "",
        "??5?????? c /etc/fuse-gated/policy.yaml\n",
    )
    for unit in (SOCKET, "fuse-gated-mountd.socket"):
        assert machine.run("systemctl", "is-enabled", unit).stdout == "enabled\n"
        assert machine.show(unit, "ActiveState") == "active"
    assert machine.ours() == []


def test_the_main_job(service: Machine, figures: Note) -> None:
    """The first connection starts it; another user reads and writes the mount; a third may not enter; what the policy refuses
    is refused, and the journal tells of it."""
    client = service.client()
    service.write(f"{client.export}/file", "from the client", "644")
    service.write(f"{client.export}/secret", "not for the server", "644")
    assert client.mounted().wait_for("mounted")["path"] == client.mount
    assert service.show(DAEMON, "StatusText") == "1 session, 1 tenant"
    assert service.run_as("reader", "cat", f"{client.mount}/file").stdout == "from the client"
    service.run_as_person("reader", "sh", "-c", f"echo from the server >{client.mount}/new")
    assert service.run("cat", f"{client.export}/new").stdout == "from the server\n"
    refused = service.run_as("reader", "cat", f"{client.mount}/secret", check=False)
    assert (refused.status, "Permission denied" in refused.stderr) == (1, True)
    stranger = service.run_as("other", "ls", client.mount, check=False)
    assert (stranger.status, "Permission denied" in stranger.stderr) == (2, True)
    service.run("journalctl", "--sync")
    query = ("FUSE_GATED_TENANT=acme", "FUSE_GATED_DECISION=denied", f"_SYSTEMD_UNIT={DAEMON}")
    entries = [json.loads(line) for line in service.run("journalctl", "--boot", "-o", "json", *query).stdout.splitlines()]
    told = entries[-1]
    uid = service.run("id", "-u", "reader").stdout.strip()
    assert (told["FUSE_GATED_PATH"], told["FUSE_GATED_ERRNO"], told["FUSE_GATED_UID"]) == ("/secret", "EACCES", uid)
    assert "Which rule decides" in service.run("journalctl", "--boot", "--catalog", *query).stdout
    assert ": whole: records 1.." in service.run("fuse-gatectl", "audit", "--verify").stdout
    client.stop()
    until_gone(service, client.mount)


def test_doctor_finds_nothing_wrong(service: Machine) -> None:
    service.client().mounted()
    report = json.loads(service.run("fuse-gatectl", "doctor", "--json").stdout)
    assert [check for check in report["checks"] if check["state"] not in ("ok", "warn")] == []
    told = {check["name"]: check for check in report["checks"]}
    assert told["FUSE protocol"]["state"] == "ok"


def test_memory(service: Machine, figures: Note) -> None:
    service.client().mounted()
    before = int(service.slice_file("memory.current"))
    second = service.client("second").mounted()
    service.run_as("reader", "ls", second.mount)
    after = int(service.slice_file("memory.current"))
    processes = {"the idle daemon": service.main_pid(DAEMON), "the mount keeper": service.main_pid(KEEPER)}
    processes["a session"] = service.workers()[0]
    for name, pid in processes.items():
        rollup = service.run("cat", f"/proc/{pid}/smaps_rollup").stdout
        sizes = {field: int(size) for field, size in re.findall(r"^(\w+): +(\d+) kB$", rollup, re.MULTILINE)}
        own = f"{sizes['Pss'] / 1024:.1f}, {sizes['Private_Dirty'] / 1024:.1f} MiB"
        figures(service, f"{name}: PSS, and of that its own", own)
        # No figure that anybody promised: an order of magnitude that a leak would pass.
        assert 1 < sizes["Pss"] / 1024 < 64
    figures(service, "one more session, in the slice's memory.current", f"{(after - before) / 2**20:.1f} MiB")


@pytest.mark.skipif(os.uname().machine == "aarch64", reason="this machine is of the same architecture")
def test_a_client_of_another_architecture(service: Machine, outside: Any, tmp_path: Path) -> None:
    """The client runs here, outside the virtual machine."""
    export = tmp_path / "export"
    (export / "directory").mkdir(parents=True)
    (export / "directory/inside").touch()
    (export / "file").write_bytes(b"0123456789")
    (export / "short").write_bytes(b"0123456789")
    (export / "large").write_bytes(bytes(65536))
    (export / "secret").write_bytes(b"secret")
    (export / "link").symlink_to("file")
    os.utime(export / "large", ns=(10**18 + 1, 10**18 + 3))
    for path in export.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o777)
    mount = outside(export)
    service.write("/opt/foreign.py", FOREIGN.read_text())
    told = json.loads(service.run_as_person("reader", "python3", "-I", "/opt/foreign.py", mount).stdout)
    assert told == {
        "O_RDONLY": ["r", 10], "O_WRONLY": ["w", 10], "O_RDWR": ["rw", 10], "O_NOFOLLOW": ["r", 10], "O_NOATIME": ["r", 10],
        "O_NONBLOCK": ["r", 10], "O_SYNC": ["r", 10], "O_DSYNC": ["r", 10], "O_CLOEXEC": ["r", 10], "O_NOCTTY": ["r", 10],
        "O_DIRECTORY": "ENOTDIR", "O_DIRECT": 65536, "O_TRUNC": ["rw", 1], "O_APPEND": ["w", 11], "O_CREAT": ["w", 1],
        "O_EXCL": "EEXIST", "O_NOFOLLOW on a link": "ELOOP", "O_DIRECTORY on a directory": True, "missing": "ENOENT",
        "not empty": "ENOTEMPTY", "exists": "EEXIST", "no attribute": "ENODATA", "too long": "ENAMETOOLONG", "refused": "EACCES",
        "lock": [True, 2**33, 10], "far": 5 * 2**30 + 3, "in sequence": True,
        "listing": ["directory", "far", "file", "large", "link", "new", "secret", "sequence", "short"],
        "status": [65536, True, 10**18 + 3], "machine": "aarch64",
    }  # fmt: skip
    assert (export / "far").stat().st_size == 5 * 2**30 + 3
    assert (export / "short").read_bytes() == b"x"


def test_tasks_are_bounded(service: Machine, only_small_pages: None) -> None:
    """TasksMax= of the slice: who comes is told that there is no room, who is there stays, and then there is room again."""
    first = service.client().mounted()
    service.write(f"{first.export}/file", "hello")
    service.bound(f"TasksMax={service.slice_file('pids.current').strip()}")
    second = service.client("second")
    assert "cannot start a worker" in second.wait_for("closed")["reason"]
    assert number("max", service.slice_file("pids.events")) >= 1
    assert service.run_as("reader", "cat", f"{first.mount}/file").stdout == "hello"
    second.stop()
    service.bound("TasksMax=infinity")
    service.client("second").mounted()


def test_memory_is_bounded_and_a_worker_goes_before_the_daemon(service: Machine, only_small_pages: None) -> None:
    """MemoryMax= of the slice: the kernel ends a worker, and neither the daemon, by whose end all would lose their sessions, nor
    the mount keeper."""
    first = service.client().mounted()
    service.write(f"{first.export}/file", "hello")
    daemon, keeper = service.main_pid(DAEMON), service.main_pid(KEEPER)
    worker = service.workers()[0]
    scores = [int(service.run("cat", f"/proc/{pid}/oom_score_adj").stdout) for pid in (keeper, daemon, worker)]
    assert scores == [-500, -400, 0]
    service.bound(f"MemoryMax={int(service.slice_file('memory.current')) + 2**21}", "MemorySwapMax=0")
    for another in range(8):
        service.client(f"more{another}")
        service.run("sleep", "4")
        killed = number("oom_kill", service.slice_file("memory.events"))
        if killed:
            break
    assert killed >= 1
    assert (service.main_pid(DAEMON), service.main_pid(KEEPER)) == (daemon, keeper)
    told = service.run("journalctl", "--boot", "--dmesg", "--grep=oom-kill:", "--output=cat").stdout
    assert set(re.findall(r"task=([^,]+)", told)) <= {f"fg-{name}" for name in re.findall(r"task=fg-([0-9a-f]+)", told)}
    service.bound("MemoryMax=infinity")
    assert service.client("after").mounted()


def test_what_code_in_the_daemons_place_cannot_do(service: Machine, only_small_pages: None) -> None:
    """As tests/system has it, with this architecture's system calls and a kernel that enforces all of them."""
    service.write("/opt/probe.py", PROBE.read_text())
    service.shell("echo secret >/tmp/of-another; mkdir -p /home/somebody")
    client = service.client().mounted()
    command = f"/usr/bin/python3 -I /opt/probe.py {service.main_pid(DAEMON)} {client.mount}"
    service.write(f"/run/systemd/system/{DAEMON}.d/test.conf", f"[Service]\nExecReload=\nExecReload={command}\n")
    service.run("systemctl", "daemon-reload")
    service.run("systemctl", "restart", DAEMON)
    service.client("again").mounted()
    service.run("systemctl", "reload", DAEMON)
    said = service.run("journalctl", "--sync").stdout + service.run("journalctl", "--boot", "-o", "cat", "-u", DAEMON).stdout
    (told,) = [line for line in said.splitlines() if line.startswith("PROBE ")]
    outcome = json.loads(told.removeprefix("PROBE "))
    assert outcome.pop("capabilities") == "0" * 16
    outcome.pop("processes")
    assert {name: said for name, said in outcome.items() if said not in REFUSALS} == {}
    assert len(outcome) > 30


def test_workers_are_caged(service: Machine, only_small_pages: None) -> None:
    service.client().mounted()
    for pid in service.workers():
        workers, daemons = (service.run("cat", f"/proc/{each}/status").stdout for each in (pid, service.main_pid(DAEMON)))
        assert [number(name, workers) for name in ("Seccomp:", "NoNewPrivs:", "CapBnd:")] == [2, 1, 0]
        # Its own beside the unit's.
        assert number("Seccomp_filters:", workers) == number("Seccomp_filters:", daemons) + 1


def test_units_are_in_order(service: Machine, only_small_pages: None, figures: Note) -> None:
    for unit in OURS:
        done = service.run("systemd-analyze", "verify", "--man=no", unit, check=False)
        assert (done.status, done.stdout + done.stderr) == (0, "")
    for unit, most in ((DAEMON, 0.3), (KEEPER, 3.1)):
        said = service.run("systemd-analyze", "security", "--no-pager", unit).stdout
        found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", said)
        assert found is not None
        figures(service, f"systemd-analyze security {unit}", found[1])
        assert float(found[1]) <= most


def test_what_depends_on_the_architecture_by_its_own_tests(machine: Machine, figures: Note) -> None:
    """The tests that look at numbers, layouts, locks and the cage, run on the architecture itself."""
    tests = ["tests/test_architecture.py"]
    tests += [f"tests/edge/test_{name}.py" for name in ("syscalls", "seccomp", "locks", "beneath", "process", "fuse_requests")]
    # The source is read-only there.
    command = "cd /srv/source && PYTHONDONTWRITEBYTECODE=1 python3 -m pytest -p no:cacheprovider -q --drivers kernel"
    done = machine.shell(f"{command} {' '.join(tests)} 2>&1", check=False)
    assert done.status == 0, done.stdout[-6000:]
    last = done.stdout.splitlines()[-1]
    figures(machine, "tests of what depends on the architecture", re.sub(r" in .*", "", last))
