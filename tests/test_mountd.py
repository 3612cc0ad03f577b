"""mountd.py: a real mount keeper in a process of its own, real mounts, and a daemon that may be hostile."""

import contextlib
import fcntl
import os
import select
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import msgspec
import posix1e
import pytest
from harness import mounts_beneath, outcome
from harness.leftovers import descriptors
from harness.mounting import keepers_runtime
from harness.mounting import mount as mount_any

from fuse_gated import mountd
from fuse_gated.edge import mounts, process
from fuse_gated.edge.channel import Channel
from fuse_gated.edge.keeping import (
    ANSWERS,
    MAX_NOTE,
    STATE_SIZE,
    Access,
    Displace,
    Done,
    Fetch,
    FromDaemon,
    FromKeeper,
    Held,
    Mount,
    Mounted,
    Note,
    Place,
    Placed,
    Refused,
    Remount,
    Unmount,
)
from fuse_gated.errors import OperatorError
from fuse_gated.mountd_serving import Attendance

PATIENCE = 30.0


class OneDaemon:
    """It comes, and no other."""

    def __init__(self, daemon: socket.socket) -> None:
        self.daemon: socket.socket | None = daemon
        self.reader, writer = os.pipe()
        os.close(writer)

    def fileno(self) -> int:
        return self.reader

    def accept(self) -> socket.socket:
        if self.daemon is None:
            raise EOFError
        daemon, self.daemon = self.daemon, None
        return daemon


class Keeper:
    """A mount keeper as a process, and the daemon's end of its channel."""

    def __init__(self, runtime: Path) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def main() -> int:
            self.socket.close()
            with (
                process.Signals(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals,
                contextlib.closing(mountd.MountKeeper(str(runtime))) as keeper,
            ):
                Attendance(keeper, OneDaemon(theirs), signals, lambda _: None).run(None, None)
            return 0

        self.child = process.spawn(main, program=mountd.PROGRAM)
        theirs.close()
        self.channel = Channel(self.socket, ANSWERS)
        self.fds: list[int] = []

    def ask(self, request: FromDaemon) -> FromKeeper:
        self.channel.send(request)
        return self.answer()

    def answer(self) -> FromKeeper:
        assert select.select([self.channel], [], [], PATIENCE)[0], "the mount keeper does not answer"
        received = self.channel.receive()
        assert received is not None, "the mount keeper is gone"
        answer, fds = received
        assert len(fds) == (2 if isinstance(answer, Mounted | Placed | Held) else 0)
        self.fds += fds
        return answer

    def refusal(self, request: FromDaemon) -> str:
        answer = self.ask(request)
        assert isinstance(answer, Refused)
        assert answer.id == request.id
        return answer.reason

    def close(self) -> int | None:
        self.channel.close()
        for fd in self.fds:
            os.close(fd)
        return self.child.wait(PATIENCE)


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Path]:
    """A runtime directory, beneath which nothing may be left when the keepers have ended."""
    with keepers_runtime(tmp_path) as path:
        yield path
    if (path / "mnt").exists():
        assert list((path / "mnt").iterdir()) == []


@pytest.fixture
def keeper(runtime: Path) -> Iterator[Keeper]:
    made = Keeper(runtime)
    yield made
    assert made.close() == 0


def mount(export: str = "web", tenant: str = "acme", **fields: object) -> Mount:
    return msgspec.structs.replace(Mount(id=7, tenant=tenant, export=export), **fields)


def place(export: str = "web", tenant: str = "acme", **fields: object) -> Place:
    return msgspec.structs.replace(Place(id=8, tenant=tenant, export=export, owner=4713), **fields)


def flags_of(path: Path) -> set[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(path):
            return {*fields[5].split(","), *fields[-1].split(",")}
    raise AssertionError(f"{path} is not mounted")


def acl_of(path: Path) -> set[str]:
    return set(str(posix1e.ACL(file=str(path))).split())


def test_a_mount_is_made_with_its_descriptor_and_taken_away_with_its_directories(keeper: Keeper, runtime: Path) -> None:
    assert keeper.ask(mount()) == Mounted(id=7, path=f"{runtime}/mnt/acme/web")
    device, _ = keeper.fds
    assert os.read(device, 2**20 + 4096)[4:8] == (26).to_bytes(4, "little")  # INIT
    assert mounts_beneath(runtime) == [runtime / "mnt/acme/web"]
    assert flags_of(runtime / "mnt/acme/web") >= {"nosuid", "nodev", "noexec", "allow_other"}
    assert keeper.ask(Unmount(id=8, tenant="acme", export="web")) == Done(id=8)
    assert mounts_beneath(runtime) == []
    assert list((runtime / "mnt").iterdir()) == []


def test_the_directories_are_roots_with_modes_that_let_nobody_change_them(keeper: Keeper, runtime: Path) -> None:
    keeper.ask(mount())
    for path, mode in (
        (runtime, 0o755),
        (runtime / "mnt", 0o755),
        (runtime / "mnt/acme", 0o700),
        (runtime / "mountd.lock", 0o600),
    ):
        status = path.stat()
        assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, mode), path


def test_options_are_what_the_request_says(keeper: Keeper, runtime: Path) -> None:
    keeper.ask(mount("a"))
    keeper.ask(mount("b", noexec=False, nosymfollow=True, default_permissions=True))
    optional = {"noexec", "nosymfollow", "default_permissions"}
    assert flags_of(runtime / "mnt/acme/a") & optional == {"noexec"}
    assert flags_of(runtime / "mnt/acme/b") & optional == {"nosymfollow", "default_permissions"}


def test_exports_come_and_go_one_by_one(keeper: Keeper, runtime: Path) -> None:
    for tenant, export in (("acme", "a"), ("acme", "b"), ("other", "a")):
        assert isinstance(keeper.ask(mount(export, tenant)), Mounted)
    assert len(set(keeper.fds)) == 6
    assert keeper.ask(Unmount(id=1, tenant="acme", export="a")) == Done(id=1)
    assert sorted(mounts_beneath(runtime)) == [runtime / "mnt/acme/b", runtime / "mnt/other/a"]
    assert os.listdir(runtime / "mnt/acme") == ["b"]
    assert isinstance(keeper.ask(mount("a")), Mounted)


def test_entry_is_for_whom_the_request_names_and_changes_with_it(keeper: Keeper, runtime: Path) -> None:
    keeper.ask(mount(uids=(4711,), gids=(4800,)))
    tenant = runtime / "mnt/acme"
    assert acl_of(tenant) == {"user::rwx", "user:4711:r-x", "group::---", "group:4800:r-x", "mask::r-x", "other::---"}
    assert keeper.ask(Access(id=1, tenant="acme", uids=(4712,))) == Done(id=1)
    assert acl_of(tenant) == {"user::rwx", "user:4712:r-x", "group::---", "mask::r-x", "other::---"}
    assert keeper.ask(Access(id=2, tenant="acme", anyone=True)) == Done(id=2)
    assert stat.S_IMODE(tenant.stat().st_mode) == 0o755
    keeper.ask(mount("other"))
    assert acl_of(tenant) == {"user::rwx", "group::---", "other::---"}


def test_noexec_changes_on_a_live_mount(keeper: Keeper, runtime: Path) -> None:
    keeper.ask(mount(nosymfollow=True))
    before = flags_of(runtime / "mnt/acme/web")
    assert keeper.ask(Remount(id=1, tenant="acme", export="web", noexec=False)) == Done(id=1)
    assert flags_of(runtime / "mnt/acme/web") == before - {"noexec"}
    assert keeper.ask(Remount(id=2, tenant="acme", export="web", noexec=True)) == Done(id=2)
    assert flags_of(runtime / "mnt/acme/web") == before


def test_what_is_not_there_or_there_already_is_refused(keeper: Keeper) -> None:
    assert "not mounted" in keeper.refusal(Unmount(id=1, tenant="acme", export="web"))
    assert "not mounted" in keeper.refusal(Remount(id=2, tenant="acme", export="web", noexec=True))
    assert "no mounts" in keeper.refusal(Access(id=3, tenant="acme", anyone=True))
    keeper.ask(mount())
    assert "mounted already" in keeper.refusal(mount())
    assert "not mounted" in keeper.refusal(Unmount(id=4, tenant="acme", export="other"))


BAD_NAMES = ["", ".", "..", "../x", "a/b", "/", "A", "-a", ".a", "_a", "a\0b", "a\nb", "ä", "a" * 65, "a b", "a\n"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_are_checked_again(keeper: Keeper, runtime: Path, name: str) -> None:
    for request in (
        mount(name),
        mount(tenant=name),
        Unmount(id=1, tenant=name, export="web"),
        Unmount(id=2, tenant="acme", export=name),
        Access(id=3, tenant=name),
        Remount(id=4, tenant=name, export="web", noexec=True),
        Remount(id=5, tenant="acme", export=name, noexec=True),
        place(name),
        place(tenant=name),
        Displace(id=6, tenant="acme", export=name, aside="a"),
        Displace(id=7, tenant="acme", export="web", aside=name),
    ):
        assert "name" in keeper.refusal(request)
    assert os.listdir(runtime / "mnt") == []


@pytest.mark.parametrize("ids", [(-1,), (2**32 - 1,), (2**63,), tuple(range(1001))])
def test_ids_are_checked_again(keeper: Keeper, runtime: Path, ids: tuple[int, ...]) -> None:
    keeper.ask(mount("there"))
    for request in (
        mount(uids=ids),
        mount(gids=ids),
        Access(id=1, tenant="acme", uids=ids),
        Access(id=2, tenant="acme", gids=ids),
        place(uids=ids),
        place(gids=ids),
    ):
        assert "users and groups" in keeper.refusal(request)
    assert mounts_beneath(runtime) == [runtime / "mnt/acme/there"]


def test_what_another_has_mounted_there_is_not_covered(keeper: Keeper, runtime: Path) -> None:
    keeper.ask(mount("web"))
    foreign = runtime / "mnt/acme/foreign"
    foreign.mkdir()
    directory = os.open(foreign, os.O_PATH)
    device = mounts.mount_fuse(directory, source="foreign")
    os.close(directory)
    assert "foreign" in keeper.refusal(mount("foreign"))
    assert mounts_beneath(foreign) == [foreign]
    mounts.unmount(str(foreign))
    os.close(device)
    assert isinstance(keeper.ask(mount("foreign")), Mounted)


def test_a_copys_directory_is_its_keepers_and_others_may_work_in_it(keeper: Keeper, runtime: Path) -> None:
    assert keeper.ask(place(uids=(4711,), gids=(4712,))) == Placed(id=8, path=f"{runtime}/mnt/acme/web")
    copy, beside = keeper.fds
    at = runtime / "mnt" / "acme"
    assert os.path.samestat(os.fstat(copy), (at / "web").stat())
    assert os.path.samestat(os.fstat(beside), (at / "web~copy").stat())
    assert {path.stat().st_uid for path in (at / "web", at / "web~copy")} == {0}, "it has no CAP_CHOWN"
    assert {"user:4711:r-x", "group:4712:r-x"} <= acl_of(at), "who may enter"
    assert {"user:4711:rwx", "group:4712:rwx", "user:4713:rwx"} <= acl_of(at / "web")
    assert acl_of(at / "web~copy") == {"user::rwx", "user:4713:rwx", "group::---", "mask::rwx", "other::---"}
    (at / "web" / "f").write_text("x")
    assert {"user:4711:rwx", "user:4713:rwx", "other::---"} <= acl_of(at / "web" / "f")
    assert keeper.ask(place(uids=(4711,))) == Placed(id=8, path=f"{at}/web"), "it is gone on with"
    assert (at / "web" / "f").exists()
    assert keeper.ask(Displace(id=9, tenant="acme", export="web", aside="s1")) == Done(id=9)
    assert sorted(os.listdir(at)) == ["web~unsent-s1"]
    (at / "web~unsent-s1" / "f").unlink()
    (at / "web~unsent-s1").rmdir()
    keeper.ask(place())
    assert keeper.ask(Displace(id=9, tenant="acme", export="web", aside="s2")) == Done(id=9)
    assert os.listdir(runtime / "mnt") == []
    assert "no mounts" in keeper.refusal(Displace(id=9, tenant="acme", export="web", aside="s3"))


def test_a_copy_and_a_mount_have_one_place(keeper: Keeper, runtime: Path) -> None:
    keeper.ask(mount())
    assert "is mounted" in keeper.refusal(place())
    keeper.ask(place("other"))
    keeper.ask(Unmount(id=1, tenant="acme", export="web"))
    assert os.listdir(runtime / "mnt" / "acme") != [], "the tenant's directory stays for the other"
    keeper.ask(Displace(id=2, tenant="acme", export="other", aside="s"))
    for owner in (0, -1, 2**32 - 1):
        assert "not a user" in keeper.refusal(place(owner=owner))
    foreign = runtime / "mnt" / "acme" / "foreign"
    keeper.ask(mount("there"))
    foreign.mkdir()
    directory = os.open(foreign, os.O_PATH)
    device = mounts.mount_fuse(directory, source="foreign")
    os.close(directory)
    assert keeper.refusal(place("foreign"))
    mounts.unmount(str(foreign))
    os.close(device)
    foreign.rmdir()


def test_what_programs_have_written_outlives_the_keeper(runtime: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = Keeper(runtime)
    first.ask(place())
    (runtime / "mnt" / "acme" / "web" / "f").write_text("x")
    assert first.close() == 0
    second = Keeper(runtime)
    assert isinstance(second.ask(place()), Placed)
    assert (runtime / "mnt" / "acme" / "web" / "f").read_text() == "x"
    assert "stays" not in capfd.readouterr().err
    (runtime / "mnt" / "acme" / "web" / "f").unlink()
    second.ask(Displace(id=1, tenant="acme", export="web", aside="s"))
    assert second.close() == 0


def test_a_mount_that_fails_leaves_nothing(keeper: Keeper, runtime: Path) -> None:
    keeper.ask(mount("there"))
    elsewhere = runtime / "elsewhere"
    elsewhere.mkdir()
    # A link, where only root could put one, is not followed.
    (runtime / "mnt/acme/web").symlink_to(elsewhere)
    assert isinstance(keeper.ask(mount("web")), Refused)
    assert mounts_beneath(runtime) == [runtime / "mnt/acme/there"]
    (runtime / "mnt/acme/web").unlink()
    (runtime / "mnt/new").symlink_to(elsewhere)
    assert isinstance(keeper.ask(mount("web", "new")), Refused)
    (runtime / "mnt/new").unlink()
    assert os.listdir(elsewhere) == []


def test_what_somebody_unmounted_by_hand_can_be_unmounted(keeper: Keeper, runtime: Path) -> None:
    keeper.ask(mount())
    assert mounts.unmount(str(runtime / "mnt/acme/web"))
    assert keeper.ask(Unmount(id=1, tenant="acme", export="web")) == Done(id=1)
    assert os.listdir(runtime / "mnt") == []


def test_something_in_a_mount_point_is_left_there(runtime: Path, capfd: pytest.CaptureFixture[str]) -> None:
    keeper = Keeper(runtime)
    (runtime / "mnt/acme/web").mkdir(parents=True)
    (runtime / "mnt/acme/web/kept").write_text("root's")
    keeper.ask(mount())
    assert keeper.ask(Unmount(id=1, tenant="acme", export="web")) == Done(id=1)
    assert (runtime / "mnt/acme/web/kept").read_text() == "root's"
    assert keeper.close() == 0
    assert "stays" in capfd.readouterr().err
    (runtime / "mnt/acme/web/kept").unlink()
    mountd.MountKeeper(str(runtime)).close()


def test_a_worker_that_dies_does_not_break_the_mount(keeper: Keeper, runtime: Path) -> None:
    keeper.ask(mount())
    while keeper.fds:
        os.close(keeper.fds.pop())
    # Nobody but the keeper has the device now: still no ENOTCONN, the caller waits, until it is told.
    ended = {"ENOTCONN", "ECONNABORTED"}
    child = process.spawn(lambda: outcome(os.stat, runtime / "mnt/acme/web/file") not in ended)
    assert child.wait(0.05) is None
    assert keeper.ask(Unmount(id=1, tenant="acme", export="web")) == Done(id=1)
    assert child.wait(PATIENCE) == 0


# What it keeps for whoever comes next.


def test_a_state_comes_with_each_mount_and_none_can_change_its_size(keeper: Keeper) -> None:
    keeper.ask(mount("a"))
    keeper.ask(mount("b"))
    first, second = keeper.fds[1::2]
    assert os.fstat(first).st_size == os.fstat(second).st_size == STATE_SIZE
    assert not os.path.sameopenfile(first, second)
    for size in (0, STATE_SIZE + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(first, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(first, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_what_is_held_is_found_in_the_order_of_the_mounts(keeper: Keeper, runtime: Path) -> None:
    for export, links in (("b", True), ("c", False), ("a", False)):
        keeper.ask(mount(export, nosymfollow=links))
    assert keeper.ask(Note(id=1, tenant="acme", export="b", data=b"first")) == Done(id=1)
    assert keeper.ask(Note(id=2, tenant="acme", export="b", data=b"\0" * MAX_NOTE)) == Done(id=2)
    assert keeper.ask(Unmount(id=3, tenant="acme", export="c")) == Done(id=3)
    here = str(runtime / "mnt/acme")
    for index, (export, note, links) in enumerate((("b", b"\0" * MAX_NOTE, True), ("a", b"", False))):
        told = Held(id=4, tenant="acme", export=export, path=f"{here}/{export}", note=note, nosymfollow=links)
        assert keeper.ask(Fetch(id=4, index=index)) == told
    # The same two as came with the mount, and the same when they are asked for again.
    assert isinstance(keeper.ask(Fetch(id=5, index=0)), Held)
    mounted, fetched, again = keeper.fds[0:2], keeper.fds[6:8], keeper.fds[10:12]
    os.pwrite(mounted[1], b"journal", 0)
    assert os.pread(fetched[1], 7, 0) == os.pread(again[1], 7, 0) == b"journal"
    assert os.path.sameopenfile(mounted[0], fetched[0])
    assert os.read(fetched[0], 2**20 + 4096)[4:8] == (26).to_bytes(4, "little")  # INIT
    for index in (2, 2**62):
        assert keeper.ask(Fetch(id=6, index=index)) == Done(id=6)


def test_notes_and_numbers_are_checked(keeper: Keeper) -> None:
    keeper.ask(mount())
    assert "more than 16384" in keeper.refusal(Note(id=1, tenant="acme", export="web", data=b"x" * (MAX_NOTE + 1)))
    assert "not mounted" in keeper.refusal(Note(id=2, tenant="acme", export="other", data=b""))
    assert "export's name" in keeper.refusal(Note(id=3, tenant="acme", export="../web", data=b""))
    assert "not a number" in keeper.refusal(Fetch(id=4, index=-1))


# Ends.


def test_at_the_end_of_the_daemon_everything_is_unmounted(runtime: Path) -> None:
    keeper = Keeper(runtime)
    for export in ("a", "b", "c"):
        keeper.ask(mount(export))
    assert keeper.close() == 0
    assert mounts_beneath(runtime) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(runtime: Path, number: int) -> None:
    keeper = Keeper(runtime)
    keeper.ask(mount())
    keeper.child.send_signal(signal.SIGHUP)
    keeper.ask(mount("b"))
    keeper.child.send_signal(number)
    assert keeper.child.wait(PATIENCE) == 0
    assert mounts_beneath(runtime) == []
    keeper.close()


def test_what_is_no_message_ends_it_in_order(runtime: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for packet in (b"\xc1", b"x" * 1000, msgspec.msgpack.encode({"type": "format", "disk": "/dev/sda"})):
        keeper = Keeper(runtime)
        keeper.ask(mount())
        keeper.socket.send(packet)
        assert keeper.child.wait(PATIENCE) == 0
        assert mounts_beneath(runtime) == []
        keeper.close()
        assert "does not decode" in capfd.readouterr().err


def test_unknown_fields_and_descriptors_are_no_messages(runtime: Path, capfd: pytest.CaptureFixture[str]) -> None:
    keeper = Keeper(runtime)
    request = msgspec.to_builtins(mount()) | {"options": "suid,dev"}
    keeper.socket.send(msgspec.msgpack.encode(request))
    assert keeper.child.wait(PATIENCE) == 0
    keeper.close()
    keeper = Keeper(runtime)
    socket.send_fds(keeper.socket, [msgspec.msgpack.encode(mount())], [0])
    assert keeper.child.wait(PATIENCE) == 0
    keeper.close()
    assert capfd.readouterr().err.count("the daemon is gone: ") == 2


def test_a_daemon_that_does_not_read_is_asked_for_no_more_and_still_gets_every_answer(runtime: Path) -> None:
    keeper = Keeper(runtime)
    sent = 0
    poll = select.poll()
    poll.register(keeper.channel, select.POLLOUT)
    while poll.poll(200):
        try:
            keeper.channel.send(Unmount(id=sent, tenant="acme", export="web"))
            sent += 1
        except BlockingIOError:
            continue
        assert sent < 10**6
    assert [keeper.answer().id for _ in range(sent)] == list(range(sent))
    assert keeper.close() == 0


def test_a_daemon_that_goes_without_reading_is_no_fault(runtime: Path) -> None:
    keeper = Keeper(runtime)
    for number in range(100):
        keeper.channel.send(mount(f"e{number}"))
    assert keeper.close() == 0


def test_a_keeper_that_was_killed_is_cleaned_up_after_by_the_next(runtime: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = Keeper(runtime)
    for tenant, export in (("acme", "a"), ("acme", "b"), ("other", "a")):
        first.ask(mount(export, tenant))
    first.child.send_signal(signal.SIGKILL)
    assert first.close() == -signal.SIGKILL
    # Its mounts say 'Transport endpoint is not connected' now, and one of them lies beneath another mount.
    covering = os.open(runtime / "mnt/acme/a", os.O_PATH)
    os.close(mounts.mount_fuse(covering, source="above"))
    os.close(covering)
    assert len(mounts_beneath(runtime)) == 4
    second = Keeper(runtime)
    assert isinstance(second.ask(mount("b")), Mounted)
    assert mounts_beneath(runtime) == [runtime / "mnt/acme/b"]
    assert os.listdir(runtime / "mnt") == ["acme"]
    assert second.close() == 0
    assert capfd.readouterr().err.count("left behind") == 4


def test_mounts_that_hang_are_cleaned_up_without_being_asked(runtime: Path) -> None:
    first = Keeper(runtime)
    first.ask(mount())
    device = os.dup(first.fds[0])
    first.child.send_signal(signal.SIGKILL)
    first.close()
    # The device is still open here and nobody reads it: whoever asks that mount would wait for ever.
    second = Keeper(runtime)
    assert "not mounted" in second.refusal(Unmount(id=1, tenant="acme", export="web"))
    assert mounts_beneath(runtime) == []
    assert second.close() == 0
    os.close(device)


def test_a_mount_within_a_mount_that_was_left_goes_with_it(runtime: Path) -> None:
    outer = runtime / "mnt/acme/outer"
    outer.mkdir(parents=True)
    mount_any("tmpfs", outer, "tmpfs", 0)
    (outer / "inner").mkdir()
    inner = os.open(outer / "inner", os.O_PATH)
    device = mounts.mount_fuse(inner, source="inner")
    os.close(inner)
    mountd.MountKeeper(str(runtime)).close()
    assert mounts_beneath(runtime) == []
    os.close(device)


def test_two_keepers_never_share_a_runtime_directory(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Keeper(runtime)
    first.ask(mount())
    monkeypatch.setattr(mountd, "_LOCK_PATIENCE", 0.05)
    with pytest.raises(OperatorError, match="another fuse-gated-mountd"):
        mountd.MountKeeper(str(runtime))
    assert mounts_beneath(runtime) == [runtime / "mnt/acme/web"]
    assert first.close() == 0


def test_the_next_keeper_waits_for_one_that_is_ending(runtime: Path) -> None:
    first = Keeper(runtime)
    first.ask(mount())
    second = Keeper(runtime)
    first.child.send_signal(signal.SIGTERM)
    assert isinstance(second.ask(mount()), Mounted)
    assert first.close() == 0
    assert second.close() == 0


def test_a_runtime_directory_that_is_not_ours_is_refused(runtime: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runtime.mkdir()
    os.chown(runtime, 4711, 4711)
    keeper = Keeper(runtime)
    assert keeper.close() == 1
    assert "fuse-gated-mountd: runtime directory not ours" in capfd.readouterr().err
    assert list(runtime.iterdir()) == []
    os.chown(runtime, 0, 0)
    (runtime / "mnt").symlink_to("/tmp")
    before = descriptors()
    with pytest.raises(OperatorError, match="symbolic link"):
        mountd.MountKeeper(str(runtime))
    assert descriptors() == before
    (runtime / "mnt").unlink()


def test_what_is_no_directory_beneath_mnt_is_left_there(runtime: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (runtime / "mnt").mkdir(parents=True)
    (runtime / "mnt/file").write_text("root's")
    mountd.MountKeeper(str(runtime)).close()
    assert "file stays: Not a directory" in capfd.readouterr().err
    (runtime / "mnt/file").unlink()
