"""Records reach a real journald and a real file whole or not at all, and nothing that happens to either holds the writer up."""

import array
import contextlib
import fcntl
import importlib.util
import json
import os
import resource
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import need, need_that
from harness.journald import Journald, running_journald
from harness.leftovers import descriptors
from hypothesis import given
from hypothesis import strategies as st

from fuse_gated.config.settings import Audit
from fuse_gated.edge.journal import (
    LINE_START,
    JournalFile,
    JournalSocket,
    json_line,
    native,
    open_journal,
)
from fuse_gated.edge.records import FileSource, JournalSource, read
from fuse_gated.errors import OperatorError
from fuse_gated.gate.audit import SEALED, Chain, Fields, Record
from fuse_gated.gate.audit_verify import verify

FIELDS = st.lists(st.sampled_from(SEALED), unique=True).flatmap(
    lambda names: st.tuples(*(st.tuples(st.just(name), st.binary(max_size=20)) for name in names)).map(list)
)


@pytest.fixture
def journald() -> Iterator[Journald]:
    with running_journald() as running:
        yield running


def unlink(chain: Chain, path: bytes = b"f", detail: str = "") -> Fields:
    return chain.seal(Record(kind="operation", operation="unlink", path=path, decision="allowed", uid=7, detail=detail))


def whole(directory: str, session: str, records: int) -> bool:
    """Whether journald has every record of a session that consists of so many."""
    seen = [one for one in verify(read(JournalSource(directory, unit=None))) if one.session == session]
    return [(one.records, one.first, one.last, one.faults) for one in seen] == [(records, 1, records, ())]


class TestNativeProtocol:
    @given(FIELDS)
    def test_is_read_back_by_the_letter_of_its_documentation(self, fields: Fields) -> None:
        rest, found = native(fields), []
        while rest:
            line, rest = rest.split(b"\n", 1)
            name, equals, value = line.partition(b"=")
            if not equals:
                size, rest = int.from_bytes(rest[:8], "little"), rest[8:]
                assert rest[size : size + 1] == b"\n"
                value, rest = rest[:size], rest[size + 1 :]
            found.append((name.decode(), value))
        assert found == fields

    def test_records_arrive_as_they_were_sealed(self, journald: Journald) -> None:
        journal, chain = JournalSocket.connect(journald.socket), Chain("acme", "s1", "src")
        sealed = [unlink(chain, path) for path in (b"", b"two\nlines\n", b"\xff\x00\x1b", "größe".encode(), b"=\n=")]
        assert [journal.write(fields) for fields in sealed] == [True] * len(sealed)
        journal.close()
        journald.sync()
        found = list(read(JournalSource(journald.journal, unit=None)))
        assert [{name: record[name] for name in record if name[0] != "_"} for record in found] == list(map(dict, sealed))

    @pytest.mark.parametrize("size", [200_000, 5_000_000])
    def test_what_no_datagram_holds_arrives_too(self, journald: Journald, size: int) -> None:
        journal, chain = JournalSocket.connect(journald.socket), Chain("acme", "s1", "src")
        with contextlib.closing(journal):
            assert journal.write(unlink(chain, b"x" * size))
            assert journal.write(unlink(chain))
        journald.sync()
        assert whole(journald.journal, "s1", 2)

    def test_the_memfd_is_sealed_and_closed(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with contextlib.closing(JournalSocket(ours.detach())) as journal, theirs:
            before = descriptors()
            fields = unlink(Chain("acme", "s1", "src"), b"x" * 2**20)
            assert journal.write(fields)
            assert descriptors() == before
            data, (ancillary,), _, _ = theirs.recvmsg(10, socket.CMSG_SPACE(4))
            descriptor = array.array("i", ancillary[2])[0]
            try:
                assert data == b""
                assert os.pread(descriptor, 2**23, 0) == native(fields)
                every = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
                assert fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) == every
            finally:
                os.close(descriptor)


class TestTroubleWithJournald:
    @pytest.mark.parametrize("path", [b"f", b"x" * 300_000], ids=["small", "large"])
    def test_one_that_reads_nothing_holds_nobody_up(self, journald: Journald, path: bytes) -> None:
        journal, chain = JournalSocket.connect(journald.socket), Chain("acme", "s1", "src")
        journald.pause()
        fields = unlink(chain, path)
        while journal.write(fields):
            fields = unlink(chain, path)
            assert chain.sequence < 10_000
        assert not journal.broken
        assert journal.trouble
        room = select.poll()
        room.register(journal.fileno(), select.POLLOUT)
        assert room.poll(0) == []
        assert not journal.write(fields)
        journald.resume()
        assert room.poll(30_000)
        assert journal.write(fields)
        assert journal.trouble == ""
        journal.close()
        journald.sync()
        assert whole(journald.journal, "s1", chain.sequence)

    def test_one_that_is_gone_is_told_and_another_is_gone_on_with(self, journald: Journald) -> None:
        journal, chain = JournalSocket.connect(journald.socket), Chain("acme", "s1", "src")
        assert journal.write(unlink(chain))
        journald.sync()
        first = [dict(record) for record in read(JournalSource(journald.journal, unit=None))]
        journald.stop()
        # The kernel says so once, and from then on that the socket is connected to nothing.
        for path, trouble in ((b"x" * 300_000, "Connection refused"), (b"f", "Transport endpoint is not connected")):
            journal.broken = False
            assert not journal.write(unlink(Chain("acme", "another", "src"), path))
            assert journal.broken
            assert journal.trouble == trouble
        with running_journald() as next_one:
            connected = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            connected.connect(next_one.socket)
            journal.reconnect(connected.detach())
            assert not journal.broken
            assert journal.write(unlink(chain))
            next_one.sync()
            (session,) = verify([*first, *read(JournalSource(next_one.journal, unit=None))])
        journal.close()
        assert (session.records, session.faults) == (2, ())

    def test_a_closed_one_takes_nothing(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        journal = JournalSocket(ours.detach())
        theirs.close()
        journal.close()
        journal.close()
        assert not journal.write(unlink(Chain("acme", "s1", "src")))
        assert journal.broken

    def test_without_a_descriptor_for_the_memfd_the_record_waits(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        fields = unlink(Chain("acme", "s1", "src"), b"x" * 2**20)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.closing(JournalSocket(ours.detach())) as journal, theirs:
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                taken = journal.write(fields)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert (taken, journal.broken, journal.trouble) == (False, False, "Too many open files")
            assert journal.write(fields)

    def test_an_inherited_socket_that_blocks_is_made_not_to(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        assert ours.getblocking()
        with contextlib.closing(JournalSocket(ours.detach())) as journal, theirs:
            assert not os.get_blocking(journal.fileno())
            chain = Chain("acme", "s1", "src")
            while journal.write(unlink(chain)):
                assert chain.sequence < 10_000

    def test_a_descriptor_that_is_no_socket_is_refused(self, tmp_path: Path) -> None:
        descriptor = os.open(tmp_path, os.O_RDONLY)
        try:
            with pytest.raises(OSError, match="non-socket"):
                JournalSocket(descriptor)
        finally:
            os.close(descriptor)


class TestFile:
    @given(FIELDS, st.integers(0, 2**63))
    def test_a_line_is_what_journalctl_would_print(self, fields: Fields, usec: int) -> None:
        line = json_line(fields, usec)
        assert line.endswith(b"}\n")
        assert line.count(b"\n") == 1
        assert line.rfind(LINE_START) == 0
        shown = json.loads(line)
        assert shown.pop("__REALTIME_TIMESTAMP") == str(usec)
        assert [(name, value.encode() if isinstance(value, str) else bytes(value)) for name, value in shown.items()] == fields
        assert all(isinstance(value, str) or not is_utf8(bytes(value)) for value in shown.values())

    def test_many_processes_append_to_one_file(self, tmp_path: Path) -> None:
        path = str(tmp_path / "audit.jsonl")
        children = []
        for number in range(4):
            child = os.fork()
            if child == 0:
                status = 1
                with contextlib.suppress(BaseException):
                    journal, chain = JournalFile.open(path), Chain("acme", f"s{number}", "src")
                    status = 0 if all(journal.write(unlink(chain, b"x" * 5000)) for _ in range(100)) else 1
                os._exit(status)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
        sessions = verify(read(FileSource(path)))
        assert sorted(session.session for session in sessions) == ["s0", "s1", "s2", "s3"]
        assert {(session.records, session.faults) for session in sessions} == {(100, ())}

    def test_an_inherited_descriptor_is_gone_on_with(self, tmp_path: Path) -> None:
        path = str(tmp_path / "audit.jsonl")
        chain = Chain("acme", "s1", "src")
        first = JournalFile.open(path)
        assert first.write(unlink(chain))
        second = JournalFile(os.dup(first.fileno()))
        first.close()
        first.close()
        assert not first.write(unlink(Chain("acme", "another", "src")))
        assert second.write(unlink(chain))
        second.reconnect(os.dup(second.fileno()))
        assert second.write(unlink(chain))
        second.close()
        assert [(one.records, one.faults) for one in verify(read(FileSource(path)))] == [(3, ())]

    def test_a_full_disk_takes_nothing(self) -> None:
        with contextlib.closing(JournalFile(os.open("/dev/full", os.O_WRONLY))) as journal:
            assert not journal.write(unlink(Chain("acme", "s1", "src")))
            assert (journal.trouble, journal.broken, journal.pollable) == ("No space left on device", True, False)

    @pytest.mark.parametrize("fits", [1, 100, -2])
    def test_a_line_written_in_part_is_no_record(self, tmp_path: Path, fits: int) -> None:
        """The limit on a file's size makes write(2) short, as a full disk does, and then fail."""
        path, chain = str(tmp_path / "audit.jsonl"), Chain("acme", "s1", "src")
        with contextlib.closing(JournalFile.open(path)) as journal:
            assert journal.write(unlink(chain))
            fields = unlink(chain)
            with size_limit(os.stat(path).st_size + fits % len(json_line(fields, 10**15))):
                assert not journal.write(fields)
                assert journal.trouble == "File too large"
                assert not journal.write(fields)
            assert journal.write(fields)
            assert journal.write(unlink(chain))
        source = FileSource(path)
        assert [(one.records, one.faults) for one in verify(read(source))] == [(3, ())]
        assert source.notes == [f"{path}: what is torn or foreign was skipped, and counts as no record: line 2"]

    def test_a_line_that_lacks_nothing_but_its_end_is_a_record(self, tmp_path: Path) -> None:
        path, chain = str(tmp_path / "audit.jsonl"), Chain("acme", "s1", "src")
        with contextlib.closing(JournalFile.open(path)) as journal:
            fields = unlink(chain)
            with size_limit(len(json_line(fields, 10**15)) - 1):
                assert journal.write(fields)
            assert [one.records for one in verify(read(FileSource(path)))] == [1]
            assert journal.write(unlink(chain))
        source = FileSource(path)
        assert [(one.records, one.faults) for one in verify(read(source))] == [(2, ())]
        assert source.notes == []

    def test_a_short_write_is_ended_at_once_where_that_is_possible(self) -> None:
        """A pipe of one page with room left in it takes what of a long write goes beyond whole pages, and then one byte."""
        source, sink = os.pipe2(os.O_NONBLOCK)
        page = fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, 1)
        fields = unlink(Chain("acme", "s1", "src"))
        # A line of one page and 100 bytes.
        fields.append(("FUSE_GATED_DETAIL", b"x" * (page + 100 - len(json_line([*fields, ("FUSE_GATED_DETAIL", b"")], 10**15)))))
        with contextlib.closing(JournalFile(sink)) as journal:
            os.write(sink, b"before\n")
            assert not journal.write(fields)
            assert journal.trouble == "only a part of the line could be written"
            before, torn, rest = os.read(source, 2 * page).split(b"\n")
            assert (before, len(torn), rest) == (b"before", 100, b"")
            assert journal.write(unlink(Chain("acme", "s2", "src")))
            assert os.read(source, 2 * page).startswith(LINE_START)
        os.close(source)

    def test_a_small_filesystem_filled_by_two_writers(self) -> None:
        """What one tears, the other appends to before it can be ended; each record that counted as written is there."""
        with small_filesystem("64k") as directory:
            path, filler = str(directory / "audit.jsonl"), directory / "filler"
            filler.write_bytes(bytes(20_000))
            writers = {name: (JournalFile.open(path), Chain("acme", name, "src")) for name in ("one", "two")}
            waiting = {}
            for name, (journal, chain) in writers.items():
                fields = unlink(chain)
                while journal.write(fields):
                    fields = unlink(chain)
                    assert chain.sequence < 1000
                waiting[name] = fields
            assert writers["one"][0].trouble == "No space left on device"
            filler.unlink()
            for name in ("two", "one"):
                journal, chain = writers[name]
                assert journal.write(waiting[name])
                assert journal.write(unlink(chain))
                journal.close()
            found = {one.session: (one.records, one.faults) for one in verify(read(FileSource(path)))}
            assert found == {name: (chain.sequence, ()) for name, (_, chain) in writers.items()}


class TestOpening:
    def test_auto_takes_the_journal_where_there_is_one(self, journald: Journald, tmp_path: Path) -> None:
        with contextlib.closing(open_journal(Audit(), str(tmp_path), socket_path=journald.socket)) as journal:
            assert isinstance(journal, JournalSocket)
            assert not os.get_inheritable(journal.fileno())
        assert not list(tmp_path.iterdir())

    def test_auto_takes_the_file_where_no_journal_is(self, tmp_path: Path) -> None:
        with contextlib.closing(open_journal(Audit(), str(tmp_path), socket_path=str(tmp_path / "none"))) as journal:
            assert isinstance(journal, JournalFile)
            assert not os.get_inheritable(journal.fileno())
        assert (tmp_path / "audit.jsonl").stat().st_mode & 0o7777 == 0o600

    def test_auto_takes_the_file_where_nobody_listens_any_more(self, tmp_path: Path) -> None:
        left = tmp_path / "left"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
            listener.bind(str(left))
        named = Audit(file=str(tmp_path / "elsewhere"))
        with contextlib.closing(open_journal(named, str(tmp_path), socket_path=str(left))) as journal:
            assert isinstance(journal, JournalFile)
        assert (tmp_path / "elsewhere").exists()

    def test_the_file_is_taken_where_it_is_asked_for(self, journald: Journald, tmp_path: Path) -> None:
        with contextlib.closing(open_journal(Audit(to="file"), str(tmp_path), socket_path=journald.socket)) as journal:
            assert isinstance(journal, JournalFile)

    @pytest.mark.parametrize(
        ("audit", "says", "advises"),
        [
            (Audit(to="journal"), "does not answer: No such file", "start systemd-journald"),
            (Audit(to="file", file="/nowhere/at/all"), "cannot be opened: No such file", "name another"),
            (Audit(to="file", file="/dev/null"), "not a regular file", "name another"),
            (Audit(to="syslog"), "means nothing", "auto, journal or file"),
        ],
    )
    def test_what_cannot_be_opened_is_told_with_a_way_out(self, audit: Audit, says: str, advises: str, tmp_path: Path) -> None:
        with pytest.raises(OperatorError) as raised:
            open_journal(audit, str(tmp_path), socket_path=str(tmp_path / "none"))
        assert says in raised.value.message
        assert advises in raised.value.hint

    def test_a_link_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "audit.jsonl").symlink_to(tmp_path / "target")
        with pytest.raises(OperatorError, match="cannot be opened"):
            open_journal(Audit(to="file"), str(tmp_path))
        assert not (tmp_path / "target").exists()

    def test_a_pipe_without_a_reader_does_not_hold_the_start_up(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "audit.jsonl")
        with pytest.raises(OperatorError, match="cannot be opened"):
            open_journal(Audit(to="file"), str(tmp_path))

    @pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
    def test_a_file_that_others_may_write_is_refused(self, tmp_path: Path, mode: int) -> None:
        file = tmp_path / "audit.jsonl"
        file.touch()
        file.chmod(mode)
        with pytest.raises(OperatorError, match="can be written by others"):
            open_journal(Audit(to="file"), str(tmp_path))

    def test_a_file_of_another_user_is_refused(self, tmp_path: Path) -> None:
        need("root")
        (tmp_path / "audit.jsonl").touch(mode=0o600)
        os.chown(tmp_path / "audit.jsonl", 12345, 0)
        with pytest.raises(OperatorError, match="belongs to"):
            open_journal(Audit(to="file"), str(tmp_path))


CAGED = """
import os, sys
from fuse_gated.edge import seccomp
from fuse_gated.edge.journal import JournalFile, JournalSocket
from fuse_gated.gate.audit import Chain, Record
chain, journals = Chain("acme", "s1", "src"), [JournalSocket.connect(sys.argv[1]), JournalFile.open(sys.argv[2])]
seccomp.load_filter()
for size in (1, 300000):
    fields = chain.seal(Record(kind="operation", operation="unlink", path=b"x" * size))
    assert all(journal.write(fields) for journal in journals), [journal.trouble for journal in journals]
os._exit(0)
"""


def test_both_write_from_within_a_workers_cage(journald: Journald, tmp_path: Path) -> None:
    installed = any(importlib.util.find_spec(name) for name in ("seccomp", "pyseccomp"))
    need_that(installed, "neither python3-seccomp nor pyseccomp is installed")
    # Measuring coverage opens files, which the cage forbids.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    path = str(tmp_path / "audit.jsonl")
    subprocess.run([sys.executable, "-c", CAGED, journald.socket, path], check=True, timeout=60, env=environment)
    journald.sync()
    assert whole(journald.journal, "s1", 2)
    assert [(one.records, one.faults) for one in verify(read(FileSource(path)))] == [(2, ())]


def is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


@contextlib.contextmanager
def size_limit(size: int) -> Iterator[None]:
    """No file of this process grows beyond `size` (setrlimit(2), RLIMIT_FSIZE; Python ignores the signal)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def small_filesystem(size: str) -> Iterator[Path]:
    """A tmpfs of that size, in a mount namespace of its own."""
    need("root", "unshare")
    mount = 'mount -t tmpfs -o "size=$0" tmpfs /run && echo mounted && exec cat'
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, size],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        need_that(holder.stdout.readline() == b"mounted\n", "no mount namespaces here")
        yield Path(f"/proc/{holder.pid}/root/run")
