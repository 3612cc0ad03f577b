"""drivers.py: the drivers in their order, and sessions that are open without a mount."""

import os
import select
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import posix1e
import pytest

from fuse_gated import drivers
from fuse_gated.drivers import Drivers
from fuse_gated.edge import keeping
from fuse_gated.edge.keeping import STATE_SIZE
from fuse_gated.errors import ConfigurationError
from fuse_gated.gate.gate import Gate
from fuse_gated.gate.tenant import Identity, Tenant

GATE = Gate(Tenant(name="acme"), Identity(owner_uid=0, owner_gid=0))


class Mounting:
    """Makes mounts, or refuses them; and says what it was asked."""

    def __init__(self, refuses: str = "") -> None:
        self.alive = True
        self.refuses = refuses
        self.asked: list[tuple[Any, ...]] = []

    def mount(self, gate: Gate, export: str, then: Callable[..., None]) -> None:
        self.asked.append(("mount", gate.tenant.name, export))
        if self.refuses:
            then(keeping.Refused(id=1, reason=self.refuses), [])
        else:
            then(keeping.Mounted(id=1, path="/there"), [3, 4])

    def unmount(self, tenant: str, export: str, then: Callable[..., None]) -> None:
        self.asked.append(("unmount", tenant, export))
        then(keeping.Done(id=2), [])

    def note(self, *arguments: Any) -> None:
        self.asked.append(("note", *arguments))

    def fetch(self, then: Callable[..., None]) -> None:
        then(["found"])

    def apply(self, _gate: Gate, exports: list[str]) -> None:
        self.asked.append(("apply", exports))


def made(mounting: Mounting | None, *names: str) -> Drivers:
    return Drivers(mounting, "kernel", names)  # type: ignore[arg-type]


def answered(call: Callable[..., None], *arguments: Any) -> tuple[Any, list[int]]:
    answers: list[tuple[Any, list[int]]] = []
    call(*arguments, lambda answer, fds: answers.append((answer, fds)))
    (answer,) = answers
    return answer


def is_open_without_a_mount(answer: Any, fds: list[int]) -> bool:
    device, state = fds
    assert not select.select([device], [], [], 0)[0]
    assert os.fstat(state).st_size == STATE_SIZE
    for fd in fds:
        os.close(fd)
    return isinstance(answer, keeping.Mounted) and answer.path == ""


def test_what_can_be_mounted_is() -> None:
    mounting = Mounting()
    found = made(mounting, "kernel", "libfuse", "network")
    assert found.names == ("kernel", "network")
    assert answered(found.mount, GATE, "src") == (keeping.Mounted(id=1, path="/there"), [3, 4])
    found.note("acme", "src", b"note")
    found.apply(GATE, ["src"])
    assert answered(found.unmount, "acme", "src")[0] == keeping.Done(id=2)
    assert mounting.asked == [
        ("mount", "acme", "src"), ("note", "acme", "src", b"note"), ("apply", ["src"]), ("unmount", "acme", "src"),
    ]  # fmt: skip


def test_what_cannot_be_mounted_is_open_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    mounting = Mounting("no /dev/fuse")
    found = made(mounting, "kernel", "network")
    assert is_open_without_a_mount(*answered(found.mount, GATE, "src"))
    assert "acme/src is not mounted (no /dev/fuse): it is open without a mount" in capsys.readouterr().err
    found.note("acme", "src", b"note")
    found.apply(GATE, ["src"])
    assert answered(found.unmount, "acme", "src") == (keeping.Done(id=0), [])
    assert mounting.asked == [("mount", "acme", "src")], "who makes mounts knows nothing of it"
    mounting.refuses = ""
    answered(found.mount, GATE, "src")
    found.apply(GATE, ["src"])
    assert mounting.asked[-1] == ("apply", ["src"])


def test_where_network_is_not_listed_a_refusal_is_one() -> None:
    found = made(Mounting("no /dev/fuse"), "kernel")
    assert answered(found.mount, GATE, "src") == (keeping.Refused(id=1, reason="no /dev/fuse"), [])


def test_the_first_one_comes_first() -> None:
    mounting = Mounting()
    found = made(mounting, "network", "kernel")
    assert is_open_without_a_mount(*answered(found.mount, GATE, "src"))
    assert mounting.asked == []


def test_nobody_makes_mounts() -> None:
    found = made(None, "kernel", "libfuse", "network")
    assert (found.names, found.alive, found.can_mount, found.has_keeper) == (("network",), True, False, False)
    assert is_open_without_a_mount(*answered(found.mount, GATE, "src"))
    found.note("acme", "other", b"note")
    found.apply(GATE, ["other"])
    heard: list[Any] = []
    found.fetch(heard.append)
    assert heard == [[]]


def test_what_an_earlier_daemon_left_is_found() -> None:
    heard: list[Any] = []
    made(Mounting(), "network").fetch(heard.append)
    assert heard == [["found"]]


def test_whether_sessions_can_be_opened() -> None:
    mounting = Mounting()
    with_network, without = made(mounting, "kernel", "network"), made(mounting, "kernel")
    assert with_network.alive
    assert without.alive
    mounting.alive = False
    assert with_network.alive
    assert not without.alive


def test_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(drivers, "make_state", none)
    answer, fds = answered(made(None, "network").mount, GATE, "src")
    assert (answer.reason, fds) == ("no memory for its state: Cannot allocate memory", [])


@pytest.mark.parametrize(
    ("mounting", "listed", "message"),
    [
        ("kernel", "libfuse", r"drivers: \[libfuse\], but as root it is the kernel driver that mounts \(add kernel or network"),
        ("libfuse", "kernel", r"drivers: \[kernel\], but an ordinary user's server mounts by libfuse \(add libfuse or network"),
    ],
)
def test_none_is_left(mounting: str, listed: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Drivers(Mounting(), mounting, (listed,))  # type: ignore[arg-type]


# Copies.


def test_without_a_keeper_the_copys_directory_is_made_here(tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    identity = Identity(owner_uid=os.geteuid(), owner_gid=os.getegid(), uids=(os.geteuid(),))
    gate = Gate(Tenant(name="acme"), identity)
    made_here = Drivers(None, "libfuse", ("network",), str(runtime))
    answer, fds = answered(made_here.place, gate, "web")
    point = runtime / "mnt" / "acme" / "web"
    assert answer == keeping.Placed(id=0, path=str(point))
    assert os.path.samestat(os.fstat(fds[0]), point.stat())
    for fd in fds:
        os.close(fd)
    assert stat.S_IMODE(point.stat().st_mode) == stat.S_IMODE(point.parent.stat().st_mode) == 0o700
    (point / "f").write_text("x")
    assert answered(made_here.displace, "acme", "web", "s") == (keeping.Done(id=0), [])
    assert os.listdir(point.parent) == ["web~unsent-s"]
    assert answered(made_here.displace, "nobody", "web", "s") == (keeping.Done(id=0), [])
    everybody = Gate(Tenant(name="all"), msgspec.structs.replace(identity, anyone=True))
    answer, fds = answered(made_here.place, everybody, "web")
    for fd in fds:
        os.close(fd)
    there = runtime / "mnt" / "all"
    assert stat.S_IMODE(there.stat().st_mode) == 0o755
    assert (there / "web").stat().st_mode & 0o007 == 0o007
    some = Gate(Tenant(name="some"), msgspec.structs.replace(identity, uids=(4711,)))
    answer, fds = answered(made_here.place, some, "web")
    for fd in fds:
        os.close(fd)
    assert "user:4711:r-x" in str(posix1e.ACL(file=str(runtime / "mnt" / "some")))
    assert answered(made_here.displace, "some", "web", "s") == (keeping.Done(id=0), [])
    assert not (runtime / "mnt" / "some").exists()


def test_what_cannot_be_placed_is_told(tmp_path: Path) -> None:
    runtime = tmp_path / "run"
    runtime.write_text("no directory")
    nowhere = Drivers(None, "libfuse", ("network",), str(runtime))
    for call, arguments in ((nowhere.place, (GATE, "web")), (nowhere.displace, ("acme", "web", "s"))):
        answer, fds = answered(call, *arguments)
        assert isinstance(answer, keeping.Refused)
        assert "runtime directory" in answer.reason
        assert fds == []
