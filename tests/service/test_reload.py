"""A new policy for live sessions: what it takes away is gone at once, open files, maps and cached pages included."""

import contextlib
import datetime
import faulthandler
import mmap
import os
import pwd
import re
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from harness import Mounted, Persona, Server, Stage, digest, outcome
from harness.hostile import Child, HostileClient
from harness.waiting import records, told, until, wait_for_record

ALL: Final = ["read", "write", "execute", "delete"]
GUEST: Final = "daemon"
"""A user that every Debian has and that is nobody's here."""


def policy(*rules: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """acme with these rules before 'everything is allowed'."""
    body = {"users": ["root", "nobody"], "groups": [], "rules": [*rules, {"path": "/**", "allow": list(ALL)}], **changes}
    return {"tenants": {"acme": {"tokens": [{"sha256": digest("acme")}], **body}}}


def no(*permissions: str, path: str = "/src/**") -> dict[str, Any]:
    return {"path": path, "deny": list(permissions)}


@pytest.fixture(scope="module")
def server(stage: Stage) -> Server:
    return stage.server(policy())


@pytest.fixture(scope="module")
def mounted(stage: Stage, server: Server) -> Mounted:
    mounted = stage.mount(server=server)
    (mounted.export / "src").mkdir()
    return mounted


@pytest.fixture(autouse=True)
def whole_again(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "mounted" in request.fixturenames:
        request.getfixturevalue("server").reload(policy(), "policy applied")


@pytest.fixture
def file(mounted: Mounted, request: pytest.FixtureRequest) -> Path:
    """A file of the test's own in `src`, of three pages, on the mount."""
    name = re.sub(r"\W", "-", request.node.name)
    (mounted.export / "src" / name).write_bytes(b"x" * 12288)
    (mounted.export / "src" / name).chmod(0o755)
    return mounted.path / "src" / name


def apply(server: Server, new: dict[str, Any]) -> None:
    """Reload, and wait until the session has it."""
    before = len(told(server))
    server.reload(new, "policy applied")
    wait_for_record(server, before, kind="policy-applied")


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        # What could not be written is told here too.
        with contextlib.suppress(OSError):
            os.close(descriptor)


def refused(expected: str, function: Any, *arguments: Any) -> None:
    """The kernel forgets a moment after the worker has: from then on `function` is refused."""
    until(lambda: outcome(function, *arguments) == expected, f"{expected}; it is {outcome(function, *arguments)}")


# Narrowed.


def test_cached_pages_of_an_open_file_are_read_no_more(server: Server, file: Path) -> None:
    with opened(file) as descriptor:
        assert os.pread(descriptor, 12288, 0) == b"x" * 12288
        apply(server, policy(no("read")))
        refused("EACCES", os.pread, descriptor, 100, 0)
        refused("EACCES", os.open, file, os.O_RDONLY)
        # And the refusal is told.
        assert records(server, kind="refused", operation="read", path=f"/src/{file.name}")
        apply(server, policy())
        assert os.pread(descriptor, 12288, 0) == b"x" * 12288


def test_a_map_of_cached_pages_is_read_no_more(server: Server, file: Path) -> None:
    with opened(file) as descriptor, mmap.mmap(descriptor, 12288, prot=mmap.PROT_READ) as mapped:
        assert mapped[5000] == ord("x")
        apply(server, policy(no("read")))

        def load() -> int:
            faulthandler.disable()
            return mapped[5000]

        def ended() -> int:
            with Child(load) as child:
                return child.reap()

        until(lambda: ended() == -signal.SIGBUS, "SIGBUS")
        apply(server, policy())
        with Child(load) as child:
            assert child.result() == ord("x")


def test_an_open_file_is_written_no_more(server: Server, mounted: Mounted, file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"before", 0)
        apply(server, policy(no("write")))
        assert outcome(os.pwrite, descriptor, b"after!", 0) == "EACCES"
        assert outcome(os.ftruncate, descriptor, 0) == "EACCES"
        assert os.pread(descriptor, 6, 0) == b"before"
    assert (mounted.export / "src" / file.name).read_bytes()[:6] == b"before"


def test_a_map_is_written_no_more(server: Server, mounted: Mounted, file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor, mmap.mmap(descriptor, 12288) as mapped:
        mapped[0:6] = b"before"
        mapped.flush()
        apply(server, policy(no("write")))

        def store() -> None:
            mapped[0:6] = b"after!"
            mapped.flush()

        assert outcome(store) == "EACCES"
    assert (mounted.export / "src" / file.name).read_bytes()[:6] == b"before"


def test_cached_names_are_hidden(server: Server, mounted: Mounted, file: Path) -> None:
    assert file.name in os.listdir(file.parent)
    with opened(file) as descriptor:
        os.pread(descriptor, 1, 0)
        apply(server, policy({"path": f"/src/{file.name}", "hide": True}))
        refused("ENOENT", os.pread, descriptor, 1, 0)
        for look in (os.stat, os.listxattr, lambda path: os.open(path, os.O_RDONLY)):
            refused("ENOENT", look, file)
        assert file.name not in os.listdir(file.parent)
        apply(server, policy())
        assert os.pread(descriptor, 1, 0) == b"x"
        assert file.name in os.listdir(file.parent)


def test_a_working_directory_that_is_hidden(server: Server, mounted: Mounted) -> None:
    (mounted.export / "inner" / "deep").mkdir(parents=True)
    (mounted.export / "inner" / "deep" / "f").touch()
    with opened(mounted.path / "inner" / "deep", os.O_PATH) as directory:
        os.stat("f", dir_fd=directory)
        apply(server, policy({"path": "/inner", "hide": True}))
        for look in (os.stat, lambda name, dir_fd: os.open(name, os.O_RDONLY, dir_fd=dir_fd)):
            refused("ENOENT", lambda look=look: look("f", dir_fd=directory))
        refused("ENOENT", lambda: os.listdir(f"/proc/self/fd/{directory}"))


def test_a_file_that_may_not_be_executed_any_more(server: Server, mounted: Mounted, file: Path) -> None:
    (mounted.export / "src" / file.name).write_text("#!/bin/sh\nexit 7\n")
    assert os.spawnv(os.P_WAIT, file, [str(file)]) == 7
    apply(server, policy(no("execute")))
    until(lambda: not file.stat().st_mode & stat.S_IXUSR, "its x bits are not shown")
    assert os.spawnv(os.P_WAIT, file, [str(file)]) == 127
    apply(server, policy())
    assert os.spawnv(os.P_WAIT, file, [str(file)]) == 7


def mount_options(path: Path) -> set[str]:
    lines = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return next(set(fields[5].split(",")) for fields in lines if fields[4] == str(path))


def test_noexec_comes_and_goes(server: Server, mounted: Mounted) -> None:
    assert "noexec" not in mount_options(mounted.path)
    reading = policy()
    reading["tenants"]["acme"]["rules"] = [{"path": "/**", "allow": ["read", "write", "delete"]}]
    apply(server, reading)
    until(lambda: "noexec" in mount_options(mounted.path), "noexec")
    assert {"nosuid", "nodev"} <= mount_options(mounted.path)
    apply(server, policy())
    until(lambda: "noexec" not in mount_options(mounted.path), "no noexec")
    assert {"nosuid", "nodev"} <= mount_options(mounted.path)


# Users.


def test_a_user_who_is_taken_out(server: Server, mounted: Mounted, file: Path) -> None:
    """Entry is the kernel's to refuse, so what it has cached does not matter."""
    entry = pwd.getpwnam(GUEST)
    guest = Persona(entry.pw_uid, entry.pw_gid)
    assert guest.outcome(os.stat, file) == "EACCES"
    apply(server, policy(users=["root", "nobody", GUEST]))
    until(lambda: guest.outcome(os.stat, file) == "ok", "the guest is let in")
    with opened(file.parent, os.O_PATH) as inside:
        # Through a directory that is open nobody has to enter: the worker refuses what has a name.
        assert guest.outcome(os.stat, file.name, dir_fd=inside) == "ok"
        apply(server, policy())
        until(lambda: guest.outcome(os.stat, file) == "EACCES", "the guest is kept out")
        until(lambda: guest.outcome(os.stat, file.name, dir_fd=inside) == "EACCES", "also through an open directory")
    assert "not one of the tenant's users" in records(server, kind="refused", uid=str(guest.uid))[0]["MESSAGE"]
    assert os.stat(file).st_size == 12288


# Limits and audit.


def test_limits_and_the_audit_level(server: Server, file: Path) -> None:
    with opened(file, os.O_RDWR) as descriptor:
        apply(server, policy(limits={"file_size": "16KiB"}, audit="everything"))
        assert outcome(os.pwrite, descriptor, b"x", 16384) == "EFBIG"
        before = len(told(server))
        os.stat(file)
        assert records(server, before, kind="operation", operation="lookup", path=f"/src/{file.name}")
        apply(server, policy())
        assert os.pwrite(descriptor, b"x", 16384) == 1


# Faulty and huge policies.


def test_a_faulty_policy_changes_nothing(server: Server, mounted: Mounted, file: Path) -> None:
    apply(server, policy(no("write")))
    size = server.program.stderr.size()
    server.reload("tenants: {acme: {users: [root], rules: [{path: src}], audit: much}}\n", "the policy in force stays")
    said = server.program.stderr.data()[size:].decode()
    assert len(re.findall(r"^fuse-gated: policy not applied: policy\.yaml:1:\d+: ", said, re.M)) == 3, said
    assert outcome(os.open, file, os.O_WRONLY) == "EACCES"
    assert os.stat(file).st_size == 12288
    assert mounted.client.program.process.poll() is None


def test_a_policy_without_a_file(server: Server, file: Path) -> None:
    (server.etc / "policy.yaml").unlink()
    assert "the policy in force stays" in server.reload(None, "the policy in force stays")
    assert os.stat(file).st_size == 12288


def test_a_user_who_is_not_there(server: Server, file: Path) -> None:
    server.reload(policy(users=["nobody-knows"]), "this server has no user 'nobody-knows'")
    assert os.stat(file).st_size == 12288


def test_a_policy_of_many_rules(stage: Stage, server: Server, mounted: Mounted, file: Path) -> None:
    """More than a packet between daemon and worker holds."""
    many = [no("write", path=f"/{'long-name-' * 8}{number}/**") for number in range(4000)]
    apply(server, policy(*many, no("read")))
    refused("EACCES", os.open, file, os.O_RDONLY)
    with HostileClient(server, tenant="acme") as client:
        mount = client.open()
        assert client.during(os.listdir, mount) == ["f", "d", "l"]
        client.leave()


# Sessions that end.


def leaving(stage: Stage, new: dict[str, Any], **changes: Any) -> tuple[int, str]:
    """The exit status and the words of a client whose session a new policy ends."""
    server = stage.server(policy(**changes))
    export = stage.export(server)
    export.mount_path()
    server.reload(new, "policy applied")
    status = export.program.wait()
    wait_for_record(server, kind="session-closed")
    until(lambda: not (server.runtime / "mnt" / "acme").exists(), "its mount is gone")
    server.stop()
    return status, export.program.stderr.text()


def test_a_tenant_that_is_removed(own_stage: Stage) -> None:
    new = {"tenants": {"other": policy()["tenants"]["acme"]}}
    assert leaving(own_stage, new) == (3, _said("the tenant is gone from the policy"))


def test_a_token_that_is_removed(own_stage: Stage) -> None:
    assert leaving(own_stage, policy(tokens=[{"sha256": digest("other")}])) == (3, _said("the token is no longer valid"))


def test_a_token_that_goes_to_another_tenant(own_stage: Stage) -> None:
    new = policy(tokens=[{"sha256": digest("other")}])
    new["tenants"]["second"] = policy()["tenants"]["acme"]
    assert leaving(own_stage, new) == (3, _said("the token is no longer valid"))


def test_a_token_that_expires(own_stage: Stage) -> None:
    yesterday = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=1)
    tokens = [{"sha256": digest("acme"), "expires": yesterday}]
    assert leaving(own_stage, policy(tokens=tokens)) == (3, _said("the token is no longer valid"))


@pytest.mark.parametrize("change", [{"ownership": "passthrough"}, {"symlinks": "deny"}])
def test_what_a_live_mount_cannot_become(own_stage: Stage, change: dict[str, str]) -> None:
    reason = "the policy's ownership or symlinks changed: connect again"
    assert leaving(own_stage, policy(**change)) == (3, _said(reason))


def _said(reason: str) -> str:
    return f"fuse-gate: the server refused: {reason}\n  hint: ask the server's operator\n"
