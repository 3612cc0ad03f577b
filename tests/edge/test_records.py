"""Records are read back as they were written, from the journal and from files, and what is no record is told apart."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import need
from harness.journald import Journald, running_journald
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuse_gated.edge.journal import JournalFile, JournalSocket, json_line
from fuse_gated.edge.records import FileSource, Filters, JournalSource, Source, read, realtime
from fuse_gated.errors import OperatorError
from fuse_gated.gate.audit import SEALED, Chain, Fields, Record
from fuse_gated.gate.audit_verify import verify

Told = list[Fields]


@pytest.fixture(scope="module")
def journald() -> Iterator[Journald]:
    with running_journald() as running:
        yield running


@pytest.fixture
def own_journald() -> Iterator[Journald]:
    """For a test that changes what the journal holds."""
    with running_journald() as running:
        yield running


def story() -> Told:
    """What is written for the tests of filters: two tenants, three sessions."""
    one, two, three = Chain("acme", "s1", "src"), Chain("acme", "s2", "docs"), Chain("emca", "s3", "src")
    return [
        one.seal(Record(kind="session-opened")),
        one.seal(Record(kind="operation", operation="mkdir", path=b"a", uid=1, decision="allowed")),
        two.seal(Record(kind="refused", operation="unlink", path=b"a/b", uid=1, decision="denied", errno="EACCES")),
        three.seal(Record(kind="operation", operation="rename", path=b"x", new_path=b"a/c", uid=2, decision="allowed")),
        one.seal(Record(kind="operation", operation="unlink", path=b"ab", uid=10, decision="allowed")),
        three.seal(Record(kind="failed", operation="mkdir", path=b"\xff\n", uid=2, decision="failed", errno="ENOSPC")),
    ]


def written_to_file(told: Told, path: Path) -> FileSource:
    journal = JournalFile.open(str(path))
    assert all(journal.write(fields) for fields in told)
    journal.close()
    return FileSource(str(path))


def written_to_journald(told: Told, journald: Journald) -> JournalSource:
    journal = JournalSocket.connect(journald.socket)
    assert all(journal.write(fields) for fields in told)
    journal.close()
    journald.sync()
    return JournalSource(journald.journal, unit=None)


@pytest.fixture(params=["file", "journal"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    if request.param == "file":
        return written_to_file(story(), tmp_path / "audit.jsonl")
    return written_to_journald(story(), request.getfixturevalue("own_journald"))


def send(journald: Journald, fields: Fields) -> None:
    """As anyone can: fields that no record has."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(journald.socket)
        sender.send(b"".join(name.encode() + b"=" + value + b"\n" for name, value in fields))
    journald.sync()


def numbers(source: Source, filters: Filters | None = None) -> list[int]:
    """Which records of the story are read."""
    places = {(dict(fields)["FUSE_GATED_SESSION"], dict(fields)["FUSE_GATED_SEQUENCE"]): n for n, fields in enumerate(story())}
    return [places[record["FUSE_GATED_SESSION"], record["FUSE_GATED_SEQUENCE"]] for record in read(source, filters)]


class TestEitherSource:
    def test_every_record_comes_back_in_order_and_unchanged(self, source: Source) -> None:
        found = list(read(source))
        assert [{name: value for name, value in record.items() if name[0] != "_"} for record in found] == list(map(dict, story()))
        times = [realtime(record) for record in found]
        assert times == sorted(times)
        assert times[0] > 1_600_000_000_000_000
        assert source.beginning() == ""

    @pytest.mark.parametrize(
        ("filters", "expected"),
        [
            (Filters(), [0, 1, 2, 3, 4, 5]),
            (Filters(tenant="acme"), [0, 1, 2, 4]),
            (Filters(tenant="acm"), []),
            (Filters(session="s3"), [3, 5]),
            (Filters(path=b"a"), [1, 2, 3]),
            (Filters(path=b"a/b"), [2]),
            (Filters(path=b"\xff\n"), [5]),
            (Filters(path=b""), [1, 2, 3, 4, 5]),
            (Filters(uid=1), [1, 2]),
            (Filters(operation="mkdir"), [1, 5]),
            (Filters(decision="denied"), [2]),
            (Filters(tenant="acme", operation="unlink", uid=10), [4]),
        ],
    )
    def test_filters(self, source: Source, filters: Filters, expected: list[int]) -> None:
        assert numbers(source, filters) == expected

    def test_times_are_inclusive(self, source: Source) -> None:
        first, *_, last = [realtime(record) for record in read(source)]
        assert numbers(source, Filters(since=first, until=last)) == [0, 1, 2, 3, 4, 5]
        assert 0 not in numbers(source, Filters(since=first + 1))
        assert 5 not in numbers(source, Filters(until=last - 1))
        assert numbers(source, Filters(since=last + 1)) == []
        assert numbers(source, Filters(until=first - 1)) == []


class TestJournal:
    def test_a_value_of_any_size_comes_back_whole(self, journald: Journald) -> None:
        told = [Chain("acme", "large", "src").seal(Record(kind="operation", path=b"\xff" * 1_000_000))]
        found = list(read(written_to_journald(told, journald), Filters(session="large")))
        assert [record["FUSE_GATED_PATH"] for record in found] == [dict(told[0])["FUSE_GATED_PATH"]]

    def test_only_records_of_the_unit_count(self, journald: Journald) -> None:
        """journald itself notes which unit a record came from: who merely sends our fields is not heard."""
        unit = f"fuse-gated-test-{os.getpid()}.service"
        program = (
            "import sys; from fuse_gated.edge.journal import JournalSocket; from fuse_gated.gate.audit import Chain, Record\n"
            "fields = Chain('acme', sys.argv[2], 'src').seal(Record(kind='session-opened'))\n"
            "assert JournalSocket.connect(sys.argv[1]).write(fields)"
        )
        journald.run_in_unit(unit, program, journald.socket, "genuine")
        forged = Chain("acme", "forged", "src").seal(Record(kind="session-opened"))
        send(journald, [*forged, ("_SYSTEMD_UNIT", unit.encode())])
        source = JournalSource(journald.journal, unit)
        assert [record["FUSE_GATED_SESSION"] for record in read(source)] == [b"genuine"]
        assert source.notes == []
        anyone = JournalSource(journald.journal, unit=None)
        assert {b"genuine", b"forged"} <= {record["FUSE_GATED_SESSION"] for record in read(anyone)}
        assert "anyone on this machine can send" in anyone.notes[0]

    def test_a_field_sent_twice_fits_no_hash(self, journald: Journald) -> None:
        fields = Chain("acme", "twice", "src").seal(Record(kind="operation", path=b"a"))
        source = written_to_journald([[*fields, ("FUSE_GATED_PATH", b"/b")]], journald)
        (record,) = read(source, Filters(session="twice"))
        assert sorted(record["FUSE_GATED_PATH"].split(b"\n")) == [b"/a", b"/b"]
        (session,) = verify([record])
        assert [fault.kind for fault in session.faults] == ["altered"]

    def test_a_field_of_ours_that_no_record_has_is_read_too(self, journald: Journald) -> None:
        fields = Chain("acme", "invented", "src").seal(Record(kind="operation", path=b"a"))
        journal = JournalSocket.connect(journald.socket)
        os.write(
            journal.fileno(), b"".join(name.encode() + b"=" + value + b"\n" for name, value in fields) + b"FUSE_GATED_NEW=1\n"
        )
        journal.close()
        journald.sync()
        (record,) = read(JournalSource(journald.journal, unit=None), Filters(session="invented"))
        assert record["FUSE_GATED_NEW"] == b"1"

    def test_a_rotated_journal_says_so(self, own_journald: Journald) -> None:
        """Filled until journald lets its oldest file go."""
        chain = Chain("acme", "s1", "src")
        source = written_to_journald([chain.seal(Record(kind="session-opened"))], own_journald)
        own_journald.command("journalctl", "--rotate")
        written_to_journald([chain.seal(Record(kind="session-closed"))], own_journald)
        assert source.beginning() == ""
        own_journald.command("journalctl", "--vacuum-files=1", "-D", "/run/log/journal")
        assert source.beginning() == "the journal was rotated"
        (session,) = verify(read(source), beginning=source.beginning())
        assert (session.first, session.last, session.faults) == (2, 2, ())

    def test_an_empty_journal_has_no_beginning_to_lose(self, tmp_path: Path) -> None:
        source = JournalSource(str(tmp_path))
        assert list(read(source)) == []
        assert source.beginning() == ""

    def test_a_journal_that_is_not_there(self, tmp_path: Path) -> None:
        for use in (lambda source: list(read(source)), lambda source: source.beginning()):
            with pytest.raises(OperatorError, match=r"the journal cannot be read: No such file.*read as root"):
                use(JournalSource(str(tmp_path / "none")))

    def test_a_user_who_sees_nothing_hears_why(self, tmp_path: Path) -> None:
        need("root")
        tmp_path.chmod(0o755)
        source = JournalSource(unit=None)
        os.seteuid(65534)
        try:
            assert list(read(source, Filters(session="none has this name"))) == []
        finally:
            os.seteuid(0)
        assert "in the group systemd-journal" in source.notes[-1]

    def test_without_python_systemd(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "systemd.journal", None)
        with pytest.raises(OperatorError, match=r"not installed.*python3-systemd.*--file"):
            list(read(JournalSource()))


class TestFile:
    def test_what_journalctl_exports_is_read_as_the_journal_is(self, journald: Journald, tmp_path: Path) -> None:
        chain = Chain("acme", "exported", "src")
        told = [chain.seal(Record(kind="operation", path=path)) for path in (b"a", b"\xff", b"two\nlines", b"x" * 5000)]
        written_to_journald(told, journald)
        for option, whole in (("--all", True), ("--no-pager", False)):
            exported = tmp_path / option
            exported.write_text(journald.command("journalctl", "-D", "/run/log/journal", "--output=json", option))
            source = FileSource(str(exported))
            (session,) = verify(read(source, Filters(session="exported")))
            # Without --all journalctl leaves out what is longer than 4096 bytes, and that shows.
            assert (session.records, session.faults == ()) == (4, whole)
            assert source.notes == []

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.dictionaries(st.sampled_from(SEALED), st.binary()), st.integers(0, 2**63))
    def test_a_line_comes_back_as_it_was_written(self, tmp_path: Path, fields: dict[str, bytes], usec: int) -> None:
        fields["MESSAGE_ID"] = dict(story()[0])["MESSAGE_ID"]
        (tmp_path / "file").write_bytes(json_line(list(fields.items()), usec))
        assert list(read(FileSource(str(tmp_path / "file")))) == [{"__REALTIME_TIMESTAMP": b"%d" % usec, **fields}]

    @given(st.data())
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_torn_pieces_anywhere_cost_no_other_record(self, tmp_path: Path, data: st.DataObject) -> None:
        """A piece may be ended by a newline, or have the next line appended to it, or be the last of the file."""
        lines = [json_line(fields, 10**15 + n) for n, fields in enumerate(story())]
        content = b""
        for line in lines:
            if (size := data.draw(st.integers(0, len(line) - 2))) > 0:
                content += line[:size] + data.draw(st.sampled_from([b"", b"\n", b"\n\n"]))
            content += line
        content += lines[0][: data.draw(st.integers(0, len(lines[0]) - 2))]
        (tmp_path / "file").write_bytes(content)
        assert numbers(FileSource(str(tmp_path / "file"))) == [0, 1, 2, 3, 4, 5]

    def test_torn_and_foreign_lines_are_told_with_their_place(self, tmp_path: Path) -> None:
        good = json_line(story()[0], 10**15)
        bad = [b"{", b"[]", b"no json", b'{"MESSAGE":{"B":1}}', b'{"MESSAGE":5}', b'{"MESSAGE":[300]}', b'{"MESSAGE":[["a",{}]]}']
        bad += [b'{"MESSAGE":"\\ud800"}', b"\xff", b'{"MESSAGE":tru', b"}{"]
        (tmp_path / "file").write_bytes(good + b"".join(line + b"\n" for line in bad) + good)
        source = FileSource(str(tmp_path / "file"))
        assert len(list(read(source))) == 2
        where = "line 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, and 1 more"
        assert source.notes == [f"{tmp_path}/file: what is torn or foreign was skipped, and counts as no record: {where}"]

    @pytest.mark.parametrize(
        "foreign", [{}, {"MESSAGE_ID": "0" * 32}, {"MESSAGE_ID": None}, {"MESSAGE_ID": ["a", "b"]}, {"MESSAGE_ID": [[1], "b"]}]
    )
    def test_records_of_others_are_left_out(self, tmp_path: Path, foreign: dict[str, object]) -> None:
        (tmp_path / "file").write_text(json.dumps(foreign) + "\n")
        source = FileSource(str(tmp_path / "file"))
        assert list(read(source)) == []

    def test_several_files_are_one_after_the_other(self, tmp_path: Path) -> None:
        told = story()
        written_to_file(told[:2], tmp_path / "audit.jsonl.1")
        written_to_file(told[2:], tmp_path / "audit.jsonl")
        both = FileSource(str(tmp_path / "audit.jsonl.1"), str(tmp_path / "audit.jsonl"))
        assert numbers(both) == [0, 1, 2, 3, 4, 5]
        assert both.beginning() == ""

    def test_a_rotated_file_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = written_to_file(story(), tmp_path / "audit.jsonl")
        (tmp_path / "audit.jsonlite").touch()
        assert source.beginning() == ""
        (tmp_path / "audit.jsonl-20260131").touch()
        assert source.beginning() == "the file was rotated, see audit.jsonl-20260131"
        monkeypatch.chdir(tmp_path)
        assert FileSource("audit.jsonl").beginning() == source.beginning()

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        source = FileSource(str(tmp_path / "none" / "audit.jsonl"))
        assert source.beginning() == ""
        with pytest.raises(OperatorError, match=r"cannot be read: No such file.*--file"):
            list(read(source))


@pytest.mark.parametrize("told", [{}, {"__REALTIME_TIMESTAMP": b""}, {"__REALTIME_TIMESTAMP": b"-5"}])
def test_a_time_that_is_none_is_the_epoch(told: dict[str, bytes]) -> None:
    assert realtime(told) == 0
