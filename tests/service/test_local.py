"""A copy where the mount would be: what comes, what goes back, what is kept twice, and what outlives a kill."""

import contextlib
import itertools
import mmap
import os
import random
import shutil
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from harness import Mounted, Persona, Stage, need
from harness.proxy import Proxy
from harness.stage import ORDINARY_USER, WATCHED
from harness.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from harness.waiting import records, until, wait_for_record

from fuse_gated import control
from fuse_gated.replica.names import TEMPORARY, TOLD

NETWORK: Final = {"drivers": ["network"]}
EVERYTHING: Final = {"path": "/**", "allow": ["read", "write", "execute", "delete"]}
TOLD_NAME: Final = os.fsdecode(TOLD)


def copied(stage: Stage, *, size: str = "10MiB", options: tuple[str, ...] = (), **changes: Any) -> Mounted:
    """One session with a copy in the place of its mount."""
    tenant = stage.tenant(local={"size": size}, **changes)
    return stage.mount(tenant, settings=NETWORK, options=options)


def tree(directory: Path) -> dict[str, str]:
    """The files in a directory, but the one that tells; a copy on its way may be seen on the client."""
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in sorted(directory.rglob("*"))
        if path.name != TOLD_NAME and path.is_file() and not path.is_symlink()
    }


def settled(mounted: Mounted, expected: dict[str, str]) -> None:
    """Until both sides are that."""

    def is_so() -> bool:
        # What is being renamed may vanish in between.
        with contextlib.suppress(OSError):
            return tree(mounted.path) == tree(mounted.export) == expected
        return False

    try:
        until(is_so, "both sides are the same")
    except AssertionError as error:
        sides = {"here": tree(mounted.path), "there": tree(mounted.export)}
        wrong = {side: sorted(set(found.items()) ^ set(expected.items())) for side, found in sides.items()}
        shown = "\n".join(f"{side}: {name} {content[:40]!r}" for side, names in wrong.items() for name, content in names)
        raise AssertionError(f"{error}\n{shown}\n{lines(mounted)}") from None


def lines(mounted: Mounted) -> list[list[str]]:
    """What the file says that tells."""
    told_file = mounted.path / TOLD_NAME
    with contextlib.suppress(FileNotFoundError):
        return [line.split("\t") for line in told_file.read_text().splitlines()[1:]]
    return []


def keeper(mounted: Mounted) -> int:
    """The pid of the process that keeps the copy."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "comm").read_text() == "fg-work\n" and mounted.server.mark in _environment(entry):
                    return int(entry.name)
    raise AssertionError("no process keeps the copy")


def worker(mounted: Mounted) -> int:
    """The pid of the process that serves the session."""

    def pid() -> int:
        (session,) = control.call(str(mounted.server.runtime), "sessions")
        return int(session["pid"])

    return until(pid, "somebody serves it")


def _environment(entry: Path) -> str:
    return (entry / "environ").read_bytes().decode("utf-8", "replace")


@pytest.fixture(params=["kernel", WATCHED])
def any_stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    """A stage whose sessions remember nothing, and one as the product comes."""
    need("root")
    with Stage(request.param) as stage:
        yield stage


def test_edits_go_both_ways(any_stage: Stage) -> None:
    own_stage = any_stage
    directory = own_stage.directory / "before"
    (directory / "d").mkdir(parents=True)
    (directory / "d" / "f").write_text("one")
    (directory / "run").write_text("#!/bin/sh\n")
    (directory / "run").chmod(0o755)
    (directory / "link").symlink_to("d/f")
    server = own_stage.server(own_stage.tenant(local={"size": "10MiB"}), NETWORK)
    mounted = own_stage.mount(server=server, directory=directory)
    (session,) = control.call(str(server.runtime), "sessions")
    assert (session["driver"], session["mount"]) == ("local", str(mounted.path))
    assert mounted.path == server.runtime / "mnt" / "acme" / "work"
    settled(mounted, {"d/f": "one", "run": "#!/bin/sh\n"})
    until((mounted.path / "link").is_symlink, "the link")
    assert os.readlink(mounted.path / "link") == "d/f"
    assert (mounted.path / "run").stat().st_mode & stat.S_IXUSR
    assert (mounted.path / "d" / "f").stat().st_mtime_ns == (directory / "d" / "f").stat().st_mtime_ns

    (mounted.path / "d" / "f").write_text("two")
    (mounted.path / "new").mkdir()
    (mounted.path / "new" / "g").write_text("three")
    (mounted.path / "run").unlink()
    settled(mounted, {"d/f": "two", "new/g": "three"})
    assert stat.S_IMODE((directory / "new" / "g").stat().st_mode) == 0o644
    assert (mounted.path / "new" / "g").stat().st_mtime_ns == (directory / "new" / "g").stat().st_mtime_ns
    (directory / "d" / "f").write_text("four")
    (directory / "new" / "g").unlink()
    (directory / "new").rmdir()
    os.rename(directory / "d", directory / "e")
    settled(mounted, {"e/f": "four"})
    until(lambda: not (mounted.path / "new").exists(), "it is removed here")
    # As an editor saves.
    (mounted.path / "e" / ".f.swp").write_text("five")
    os.rename(mounted.path / "e" / ".f.swp", mounted.path / "e" / "f")
    settled(mounted, {"e/f": "five"})
    assert not [name for name in os.listdir(directory / "e") if os.fsencode(name).startswith(TEMPORARY)]
    assert not lines(mounted)
    mounted.client.stop()
    until(lambda: not mounted.path.exists(), "the copy is gone")
    assert os.listdir(server.runtime / "mnt") == []


def test_both_are_kept_where_both_have_changed(any_stage: Stage) -> None:
    mounted = copied(any_stage)
    (mounted.export / "f").write_text("one")
    settled(mounted, {"f": "one"})
    pid = keeper(mounted)
    os.kill(pid, signal.SIGSTOP)
    (mounted.path / "f").write_text("the server's")
    (mounted.export / "f").write_text("the client's")
    os.kill(pid, signal.SIGCONT)
    (session,) = control.call(str(mounted.server.runtime), "sessions")
    settled(mounted, {"f": "the client's", f"f.conflict-{session['session'][:8]}-1": "the server's"})
    until(lambda: "/f has changed on both sides" in mounted.server.program.stderr.text(), "it is told")
    # And what was removed on one side only goes, what was removed here and changed there comes back.
    os.kill(pid, signal.SIGSTOP)
    (mounted.path / "f").unlink()
    (mounted.export / "f").write_text("changed again")
    (mounted.path / f"f.conflict-{session['session'][:8]}-1").unlink()
    os.kill(pid, signal.SIGCONT)
    settled(mounted, {"f": "changed again"})


def test_the_bound_and_what_is_left_out(own_stage: Stage) -> None:
    directory = own_stage.directory / "full"
    directory.mkdir()
    (directory / "a").write_text("x" * 600)
    (directory / "b").write_text("x" * 600)
    (directory / "c").write_text("x" * 300)
    (directory / "out").symlink_to("../outside")
    os.mkfifo(directory / "pipe")
    server = own_stage.server(own_stage.tenant(local={"size": "1000"}), NETWORK)
    mounted = own_stage.mount(server=server, directory=directory)
    until(lambda: tree(mounted.path) == {"a": "x" * 600, "c": "x" * 300}, "what fits is here")
    expected = {"/b": "more than the 1000 bytes", "/out": "a link that may lead out", "/pipe": "neither a file"}
    until(lambda: len(lines(mounted)) == 3, "it is told")
    assert all(what == "not here" and why.startswith(expected[path]) for what, path, why in lines(mounted))
    assert not (directory / TOLD_NAME).exists()
    assert "3 names of the client are not in the copy" in server.program.stderr.text()
    server.reload(own_stage.tenant(local={"size": "1MiB"}), said="policy applied")
    until(lambda: set(tree(mounted.path)) == {"a", "b", "c"}, "there is room now")
    until(lambda: {path for _, path, _ in lines(mounted)} == {"/out", "/pipe"}, "it is told no more")
    (directory / "c").write_text("x" * 2**20)
    until(lambda: set(tree(mounted.path)) == {"a", "b"}, "what has grown is not shown as it was")


@pytest.mark.expected_log("the process that keeps the copy")
def test_the_process_is_killed_in_the_middle(any_stage: Stage) -> None:
    """Again and again, while both sides are worked on: nothing is lost, and in the end both are the same."""
    mounted = copied(any_stage)
    expected = {}
    for number in range(8):
        for name in ("here", "there"):
            place = mounted.path if name == "here" else mounted.export
            for count in range(6):
                file = f"{name}-{number}-{count}"
                (place / file).write_text(file * 5000)
                expected[file] = file * 5000
        (mounted.path / "rewritten").write_text(f"{number}" * 100_000)
        until(lambda: (mounted.path / "there-0-0").exists() or (mounted.export / "here-0-0").exists(), "it has begun")
        os.kill(until(lambda: _keeper_or_none(mounted), "somebody keeps it"), signal.SIGKILL)
    expected["rewritten"] = "7" * 100_000
    settled(mounted, expected)
    assert not [name for name in os.listdir(mounted.export) if os.fsencode(name).startswith(TEMPORARY)]


@pytest.mark.expected_log("ended with SIGKILL")
def test_workers_are_killed_in_the_middle(any_stage: Stage) -> None:
    mounted = copied(any_stage)
    expected = {}
    for number in range(5):
        for count in range(6):
            for name, place in ((f"here-{number}-{count}", mounted.path), (f"there-{number}-{count}", mounted.export)):
                (place / name).write_text(name * 5000)
                expected[name] = name * 5000
        (mounted.path / "rewritten").write_text(f"{number}" * 100_000)
        until(lambda n=number: (mounted.path / f"there-{n}-0").exists(), "it has begun")
        os.kill(worker(mounted), signal.SIGKILL)
    expected["rewritten"] = "4" * 100_000
    settled(mounted, expected)
    assert not [name for name in os.listdir(mounted.export) if os.fsencode(name).startswith(TEMPORARY)]


class People:
    """Who work on both sides: each change replaces or removes in one step, so that they know what they have replaced."""

    def __init__(self, mounted: Mounted, staging: Path) -> None:
        staging.mkdir()
        self.sides = (mounted.path, mounted.export)
        self.written: set[str] = set()
        self.replaced: set[str] = set()
        self._new = (staging / f"{number}" for number in itertools.count())

    def put(self, target: Path) -> None:
        new = next(self._new)
        content = f"{new.name} for {target} " * 500
        new.write_text(content)
        new.chmod(0o666)
        with contextlib.suppress(OSError):
            target.parent.mkdir(parents=True, exist_ok=True)
        for flags in (RENAME_NOREPLACE, RENAME_EXCHANGE):
            with contextlib.suppress(OSError):
                renameat2(new, target, flags)
                self.written.add(content)
                self._gone(new)
                return

    def drop(self, target: Path) -> None:
        aside = next(self._new)
        with contextlib.suppress(OSError):
            renameat2(target, aside, RENAME_NOREPLACE)
            self._gone(aside)

    def _gone(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.replaced.add(path.read_text())


@pytest.mark.expected_log("ended with SIGKILL", "the process that keeps the copy")
def test_whatever_people_do_and_whoever_is_killed_nothing_is_lost(any_stage: Stage) -> None:
    mounted = copied(any_stage)
    people = People(mounted, any_stage.directory / "staging")
    dice = random.Random(1)
    names = ["a", "b", "c", "d/a", "d/b", "d/e/a"]
    for step in range(80):
        (people.put if dice.random() < 0.75 else people.drop)(dice.choice(people.sides) / dice.choice(names))
        if step % 20 == 19:
            os.kill(until(lambda: _keeper_or_none(mounted), "somebody keeps it"), signal.SIGKILL)
        if step % 30 == 29:
            os.kill(worker(mounted), signal.SIGKILL)
        # So that it happens at all moments of what is done about it.
        time.sleep(dice.choice([0, 0.02, 0.1]))

    def is_settled() -> bool:
        with contextlib.suppress(OSError):
            here, there = tree(mounted.path), tree(mounted.export)
            return here == there and people.written - people.replaced <= set(there.values())
        return False

    until(is_settled, "everything that nobody replaced is on both sides, under some name")
    assert not [name for name in tree(mounted.export) if TEMPORARY in os.fsencode(name)]


def _keeper_or_none(mounted: Mounted) -> int:
    try:
        return keeper(mounted)
    except AssertionError:
        return 0


def test_what_the_policy_does_not_show_is_not_here(own_stage: Stage) -> None:
    rules = [{"path": "/hidden", "hide": True}, {"path": "/secret", "deny": ["read"]}, EVERYTHING]
    directory = own_stage.directory / "ruled"
    directory.mkdir()
    for name in ("hidden", "secret", "open", "later"):
        (directory / name).write_text(name)
    server = own_stage.server(own_stage.tenant(local={"size": "1MiB"}, rules=rules), NETWORK)
    mounted = own_stage.mount(server=server, directory=directory)
    until(lambda: tree(mounted.path) == {"open": "open", "later": "later"}, "only what may be read is here")
    until(lambda: lines(mounted), "it is told")
    assert [(what, path) for what, path, _ in lines(mounted)] == [("not here", "/secret")]
    assert records(server, kind="refused", path="/secret", uid=str(ORDINARY_USER)), "told to the audit, in our own user's name"
    narrower = [{"path": "/later", "deny": ["read"]}, *rules]
    server.reload(own_stage.tenant(local={"size": "1MiB"}, rules=narrower), said="policy applied")
    until(lambda: tree(mounted.path) == {"open": "open"}, "what may no longer be read goes")
    # A name that is hidden cannot be made either; what was written stays, and is told.
    (mounted.path / "hidden").write_text("mine")
    until(lambda: ("not sent", "/hidden") in [(what, path) for what, path, _ in lines(mounted)], "it is told")
    assert (directory / "hidden").read_text() == "hidden"
    assert (directory / "later").read_text() == "later"


def test_what_the_client_does_not_take_is_kept_beside(own_stage: Stage) -> None:
    mounted = copied(own_stage, options=("--read-only",))
    (mounted.export / "f").write_text("one")
    until(lambda: tree(mounted.path) == {"f": "one"}, "it has come")
    (mounted.path / "f").write_text("two")
    (mounted.path / "g").write_text("new")
    (session,) = control.call(str(mounted.server.runtime), "sessions")
    refused = f"f.refused-{session['session'][:8]}-1"
    until(lambda: tree(mounted.path) == {"f": "one", "g": "new", refused: "two"}, "the client's is to be seen by its name")
    until(lambda: {path for _, path, _ in lines(mounted)} == {f"/{refused}", "/g"}, "it is told")
    assert tree(mounted.export) == {"f": "one"}
    (mounted.path / "f").unlink()
    until(lambda: (mounted.path / "f").exists(), "it comes back")
    # In the end what nobody took is put aside.
    mounted.client.stop()
    until(lambda: not mounted.path.exists(), "the copy is gone from its place")
    (aside,) = mounted.path.parent.iterdir()
    assert aside.name == f"work~unsent-{session['session']}"
    assert (aside / refused).read_text() == "two"
    assert (aside / "g").read_text() == "new"
    assert "names are not on the client and stay here" in mounted.server.program.stderr.text()


def test_work_goes_on_without_the_client(own_stage: Stage) -> None:
    policy = own_stage.tenant(local={"size": "1MiB"}, outage={"mode": "wait", "grace": "60s"})
    server = own_stage.server(policy, NETWORK)
    with contextlib.closing(Proxy(server.port)) as proxy:
        options = ["--server", proxy.url, "--reconnect-delay", "0.05", "--reconnect-max", "0.05"]
        mounted = own_stage.mount(server=server, options=options)
        (mounted.export / "f").write_text("one")
        settled(mounted, {"f": "one"})
        proxy.refuse()
        proxy.cut()
        wait_for_record(server, kind="session-suspended")
        (mounted.path / "f").write_text("written without it")
        (mounted.path / "g").write_text("new without it")
        (mounted.export / "h").write_text("new there")
        proxy.refuse(False)
        wait_for_record(server, kind="session-resumed")
        settled(mounted, {"f": "written without it", "g": "new without it", "h": "new there"})
        mounted.client.stop()


def test_what_was_not_sent_when_the_session_ended_is_put_aside(own_stage: Stage) -> None:
    server = own_stage.server(own_stage.tenant(local={"size": "1MiB"}, outage={"mode": "wait", "grace": "1s"}), NETWORK)
    mounted = own_stage.mount(server=server)
    (mounted.export / "f").write_text("one")
    settled(mounted, {"f": "one"})
    (session,) = control.call(str(server.runtime), "sessions")
    mounted.client.program.kill()
    wait_for_record(server, kind="session-suspended")
    (mounted.path / "f").write_text("two")
    until(lambda: not mounted.path.exists(), "the session is over")
    aside = mounted.path.parent / f"work~unsent-{session['session']}"
    until(aside.exists, "it is put aside")
    assert (aside / "f").read_text() == "two"
    assert "not sent\t/f\t" in (aside / TOLD_NAME).read_text()
    # The next session begins anew beside it.
    client = own_stage.export(server, mounted.export, name="work")
    again = client.mount_path()
    until(lambda: tree(again) == {"f": "one"}, "the client's is here again")
    assert (aside / "f").read_text() == "two"


@pytest.mark.expected_log("unexpectedly: starting again")
def test_the_daemon_is_killed(own_stage: Stage) -> None:
    """With it the session ends; the copy stays, and the client's next session goes on with it."""
    mounted = copied(own_stage, size="1MiB", options=("--reconnect-delay", "0.05", "--reconnect-max", "0.05"))
    server = mounted.server
    (mounted.export / "f").write_text("one")
    settled(mounted, {"f": "one"})
    os.kill(control.call(str(server.runtime), "status")["pid"], signal.SIGKILL)
    (mounted.path / "f").write_text("two")
    (mounted.export / "g").write_text("three")
    settled(mounted, {"f": "two", "g": "three"})


def test_a_copy_of_another_export_is_put_aside(own_stage: Stage) -> None:
    """The client comes back with another directory under the same name: nothing of the first goes there."""
    server = own_stage.server(own_stage.tenant(local={"size": "1MiB"}), NETWORK)
    left = server.runtime / "mnt" / "acme" / "work"
    left.mkdir(parents=True)
    (left / "old").write_text("of nobody knows what")
    mounted = own_stage.mount(server=server)
    (mounted.export / "f").write_text("new")
    settled(mounted, {"f": "new"})
    (aside,) = [path for path in mounted.path.parent.iterdir() if "~unsent-" in path.name]
    assert (aside / "old").read_text() == "of nobody knows what"


def test_who_may_enter(own_stage: Stage) -> None:
    tenant = own_stage.tenant(local={"size": "1MiB"}, users=["games"], groups=[])
    mounted = own_stage.mount(tenant, settings=NETWORK)
    (mounted.export / "f").write_text("one")
    until((mounted.path / "f").exists, "it has come")
    insider, outsider = Persona(5, 60, ()), Persona(2, 2, ())

    def writes() -> None:
        (mounted.path / "f").write_text("by games")
        (mounted.path / "g").write_text("new")

    def fails() -> str:
        try:
            (mounted.path / "f").read_text()
        except PermissionError:
            return "refused"
        return "read"

    insider.call(writes)
    assert outsider.call(fails) == "refused"
    settled(mounted, {"f": "by games", "g": "new"})
    (mounted.export / "g").write_text("newer")
    settled(mounted, {"f": "by games", "g": "newer"})


def test_an_ordinary_users_server(own_stage: Stage) -> None:
    server = own_stage.server(own_stage.tenant(local={"size": "1MiB"}, users=["nobody"], groups=[]), NETWORK, ORDINARY_USER)
    mounted = own_stage.mount(server=server)
    (mounted.export / "f").write_text("one")
    until(lambda: tree(mounted.path) == {"f": "one"}, "it has come")
    Persona(ORDINARY_USER, ORDINARY_USER, ()).call(lambda: (mounted.path / "f").write_text("two") and None)
    settled(mounted, {"f": "two"})
    mounted.client.stop()
    until(lambda: not mounted.path.exists(), "it is gone")


def test_without_the_policys_word_there_is_no_copy(own_stage: Stage) -> None:
    mounted = own_stage.mount(own_stage.tenant(), settings=NETWORK)
    assert str(mounted.path) == "."
    (session,) = control.call(str(mounted.server.runtime), "sessions")
    assert (session["driver"], session["mount"]) == ("network", "")
    server = mounted.server
    server.reload(own_stage.tenant(local={"size": "1MiB"}), said="policy applied")
    assert not (server.runtime / "mnt" / "acme").exists(), "it is for the next session"


def test_the_policy_takes_it_back(own_stage: Stage) -> None:
    mounted = copied(own_stage)
    (mounted.export / "f").write_text("one")
    settled(mounted, {"f": "one"})
    mounted.server.reload(own_stage.tenant(), said="policy applied")
    until(lambda: not mounted.path.exists(), "it is gone")
    (session,) = control.call(str(mounted.server.runtime), "sessions")
    assert (session["driver"], session["mount"]) == ("network", "")
    mounted.client.stop()


def test_a_client_that_changes_under_our_hands(own_stage: Stage) -> None:
    """Directories become links and files, names are any bytes: nothing leads out of the copy, and the copy follows."""
    outside = own_stage.directory / "outside"
    outside.mkdir()
    (outside / "f").write_text("not to be touched")
    mounted = copied(own_stage)
    strange = os.fsdecode(b"\xff\n name")
    for name in ("d", "e"):
        (mounted.export / name).mkdir()
        (mounted.export / name / "f").write_text(name)
    (mounted.export / strange).write_text("strange")
    settled(mounted, {"d/f": "d", "e/f": "e", strange: "strange"})
    (mounted.export / "d" / "f").unlink()
    (mounted.export / "d").rmdir()
    (mounted.export / "d").symlink_to(outside)
    (mounted.export / "e" / "f").unlink()
    (mounted.export / "e" / "f").mkdir()
    (mounted.export / "e" / "f" / "g").write_text("deeper")
    until(lambda: tree(mounted.path) == {"e/f/g": "deeper", strange: "strange"}, "the copy follows")
    assert not os.path.lexists(mounted.path / "d"), "a link that leads out is not copied"
    # And here a program puts a link in a directory's place.
    (mounted.path / "e" / "f" / "g").unlink()
    (mounted.path / "e" / "f").rmdir()
    (mounted.path / "e").rmdir()
    (mounted.path / "e").symlink_to(outside)
    until(lambda: records(mounted.server, operation="rmdir", path="/e"), "the directory goes there too")
    (mounted.export / "e2").mkdir()
    (mounted.export / "e2" / "f").write_text("x")
    until((mounted.path / "e2" / "f").exists, "it goes on")
    assert tree(outside) == {"f": "not to be touched"}


def test_who_goes_on_writing_does_not_write_in_vain(own_stage: Stage) -> None:
    """To files of another user than the daemon's, of which no lease tells. One is being written, the other one open."""
    mounted = copied(own_stage)
    (mounted.path / "open").write_text("one")
    settled(mounted, {"open": "one"})
    with (mounted.path / "log").open("a") as log, (mounted.path / "open").open("a") as opened:
        log.write("one")
        log.flush()
        settled(mounted, {"log": "one", "open": "one"})
        (mounted.export / "open").write_text("the client's")
        until(lambda: (mounted.path / "open").read_text() == "the client's", "it has come")
        (mounted.export / "log").write_text("the client's")
        waits = ["not sent", "/log", "a program has it open for writing"]
        until(lambda: waits in lines(mounted), "it waits")
        log.write(" two")
        opened.write(" two")
    (session,) = control.call(str(mounted.server.runtime), "sessions")
    ours = (f"log.conflict-{session['session'][:8]}-1", "open.conflict-local-1")
    settled(mounted, {**dict.fromkeys(("log", "open"), "the client's"), **dict.fromkeys(ours, "one two")})


def test_what_is_being_written_when_the_session_ends_is_put_aside(own_stage: Stage) -> None:
    mounted = copied(own_stage)
    (mounted.path / "f").write_text("x")
    settled(mounted, {"f": "x"})
    with (mounted.path / "log").open("a") as log:
        log.write("one")
        log.flush()
        settled(mounted, {"log": "one", "f": "x"})
        mounted.client.stop()
        until(lambda: not mounted.path.exists(), "the session is over")
        log.write(" two")
    (aside,) = mounted.path.parent.iterdir()
    assert (aside / "log").read_text() == "one two"


def test_a_store_to_a_mapping_is_sent(own_stage: Stage) -> None:
    """On a tmpfs it changes no time of the file."""
    mounted = copied(own_stage)
    (mounted.path / "f").write_text("one")
    settled(mounted, {"f": "one"})
    with (mounted.path / "f").open("r+b") as file, mmap.mmap(file.fileno(), 3) as mapping:
        mapping[:] = b"two"
    settled(mounted, {"f": "two"})


def test_an_edit_that_a_cache_does_not_know_is_not_overwritten(own_stage: Stage) -> None:
    """Where the rules allow no exchange, and the worker answers a look by what it remembers."""
    directory = own_stage.directory / "remembered"
    directory.mkdir()
    (directory / "f").write_text("one")
    rules = [{"path": "/f", "deny": ["execute"]}, EVERYTHING]
    policy = own_stage.tenant(local={"size": "1MiB"}, rules=rules, cache={"mode": "ttl", "ttl": "5s"})
    mounted = own_stage.mount(server=own_stage.server(policy, NETWORK), directory=directory)
    settled(mounted, {"f": "one"})
    (mounted.export / "f").write_text("the client's edit")
    (mounted.path / "f").write_text("ours, later")
    until(lambda: len(tree(mounted.export)) > 1 or tree(mounted.export) == {"f": "ours, later"}, "it is sent")
    until(lambda: set(tree(mounted.export).values()) >= {"the client's edit", "ours, later"}, "both are kept")


@pytest.mark.expected_log("unexpectedly: starting again")
def test_a_copy_that_was_taken_away_empties_no_client(own_stage: Stage) -> None:
    """Somebody has removed the copy's directory and not what lies beside it."""
    mounted = copied(own_stage, size="1MiB", options=("--reconnect-delay", "0.05", "--reconnect-max", "0.05"))
    server = mounted.server
    (mounted.export / "f").write_text("one")
    settled(mounted, {"f": "one"})
    mounted.client.program.send(signal.SIGSTOP)
    os.kill(control.call(str(server.runtime), "status")["pid"], signal.SIGKILL)
    inode = mounted.path.stat().st_ino
    shutil.rmtree(mounted.path)
    mounted.path.mkdir()
    assert inode, "it may even be the same"
    mounted.client.program.send(signal.SIGCONT)
    settled(mounted, {"f": "one"})


@pytest.mark.expected_log("the process that keeps the copy")
def test_what_the_policy_refuses_while_nobody_keeps_the_copy_goes(own_stage: Stage) -> None:
    server = own_stage.server(own_stage.tenant(local={"size": "1MiB"}), NETWORK)
    mounted = own_stage.mount(server=server)
    for name in ("secret", "open"):
        (mounted.export / name).write_text(name)
    settled(mounted, {"secret": "secret", "open": "open"})
    pid = keeper(mounted)
    os.kill(pid, signal.SIGSTOP)
    rules = [{"path": "/secret", "deny": ["read"]}, EVERYTHING]
    server.reload(own_stage.tenant(local={"size": "1MiB"}, rules=rules), said="policy applied")
    # What the daemon says of it, half a second later, is to reach only who never hears it: nothing else tells that it was said.
    time.sleep(1.0)
    os.kill(pid, signal.SIGKILL)
    until(lambda: tree(mounted.path) == {"open": "open"}, "it goes")
    assert (mounted.export / "secret").read_text() == "secret"


@pytest.mark.expected_log("unexpectedly: starting again")
def test_what_the_policy_refuses_since_a_restart_goes(own_stage: Stage) -> None:
    server = own_stage.server(own_stage.tenant(local={"size": "1MiB"}), NETWORK)
    mounted = own_stage.mount(server=server, options=["--reconnect-delay", "0.05", "--reconnect-max", "0.05"])
    for name in ("secret", "open"):
        (mounted.export / name).write_text(name)
    settled(mounted, {"secret": "secret", "open": "open"})
    server.write_policy(own_stage.tenant(local={"size": "1MiB"}, rules=[{"path": "/secret", "deny": ["read"]}, EVERYTHING]))
    os.kill(control.call(str(server.runtime), "status")["pid"], signal.SIGKILL)
    until(lambda: tree(mounted.path) == {"open": "open"}, "it goes")
    assert (mounted.export / "secret").read_text() == "secret"


def test_more_requests_than_the_policy_allows_come_to_an_end(own_stage: Stage) -> None:
    directory = own_stage.directory / "many"
    expected = {f"d{number}/f": str(number) for number in range(30)}
    for name, content in expected.items():
        (directory / name).parent.mkdir(parents=True)
        (directory / name).write_text(content)
    limits = {"operations": {"*": 150}, "on_excess": "refuse"}
    server = own_stage.server(own_stage.tenant(local={"size": "1MiB"}, limits=limits), NETWORK)
    mounted = own_stage.mount(server=server, directory=directory)
    settled(mounted, expected)


def test_any_time_may_be_set(own_stage: Stage) -> None:
    """touch -d 3000-01-01."""
    mounted = copied(own_stage)
    (mounted.path / "f").write_text("one")
    os.utime(mounted.path / "f", ns=(0, 32503680000 * 10**9))
    (mounted.path / "g").write_text("two")
    settled(mounted, {"f": "one", "g": "two"})
