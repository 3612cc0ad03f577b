"""`fuse-gatectl audit`, as its user meets it: tables, filters, verification, and messages that say what to do."""

import datetime
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import need
from harness.journald import running_journald

from fuse_gated.commands.fuse_gatectl import main
from fuse_gated.edge import journal
from fuse_gated.edge.journal import JournalSocket, json_line
from fuse_gated.gate.audit import KINDS, Chain, Fields, Record

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]
"""(exit status, stdout, stderr) of `fuse-gatectl audit` with these arguments."""


@pytest.fixture
def run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """With /etc and the runtime directory of the test's own."""

    def run(*arguments: object) -> tuple[int, str, str]:
        (tmp_path / "etc").mkdir(mode=0o755, exist_ok=True)
        status = main(["--etc", str(tmp_path / "etc"), "--runtime", str(tmp_path), "audit", *map(str, arguments)])
        out, err = capfd.readouterr()
        return status, out, err

    return run


@pytest.fixture
def no_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without one, wherever the test runs."""
    monkeypatch.setattr(journal, "SOCKET", str(tmp_path / "no journal"))


def story() -> list[Fields]:
    acme, emca = Chain("acme", "s1", "src"), Chain("emca", "s2", "docs")
    refusal = Record(
        kind="refused",
        operation="write",
        path=b".git/hooks/pre-commit",
        decision="denied",
        rule="/.git/hooks/** policy.yaml:7",
        errno="EACCES",
        uid=1000,
        pid=42,
    )
    return [
        acme.seal(Record(kind="session-opened")),
        acme.seal(refusal),
        emca.seal(Record(kind="session-opened")),
        acme.seal(Record(kind="operation", operation="rename", path=b"a", new_path=b"b\xff", decision="allowed", uid=0, pid=7)),
        emca.seal(Record(kind="file-closed", operation="read", path=b"f", uid=5, count=3, bytes=4096, duration_usec=70)),
        acme.seal(Record(kind="failed", operation="rename", path=b"a", errno="ENOSPC", decision="failed")),
        acme.seal(Record(kind="session-closed", detail="the client left")),
    ]


def write(path: Path, told: list[Fields], start: float = 1_700_000_000) -> Path:
    """One record a second from `start` on."""
    path.write_bytes(b"".join(json_line(fields, int((start + n) * 1e6)) for n, fields in enumerate(told)))
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "told.jsonl", story())


class TestShowing:
    def test_the_table(self, run: Run, file: Path) -> None:
        status, out, err = run("--file", file)
        first = datetime.datetime.fromtimestamp(1_700_000_000).isoformat(" ", "milliseconds")
        heading, *lines = out.splitlines()
        assert status == 0
        assert err == ""
        assert heading.split() == ["TIME", "EXPORT", "UID", "PID", "WHAT", "OPERATION", "PATH", "WHY"]
        assert len(lines) == 7
        assert lines[0].split() == [*first.split(), "acme/src", "session-opened"]
        columns = {name: heading.index(name) for name in ("UID", "PID", "WHAT", "OPERATION", "PATH", "WHY")}
        assert lines[1][columns["UID"] :].startswith("1000")
        assert lines[1][columns["PID"] :].startswith("42")
        assert lines[1][columns["WHAT"] :].startswith("refused")
        assert lines[1][columns["OPERATION"] :].startswith("write")
        assert lines[1][columns["PATH"] :].startswith("/.git/hooks/pre-commit")
        assert lines[1][columns["WHY"] :] == "rule /.git/hooks/** policy.yaml:7, EACCES"
        assert lines[3][columns["PATH"] :] == "/a -> /b\\xff"
        assert lines[4][columns["WHY"] :] == "3 times, 4096 bytes, 70 us"
        assert lines[6][columns["WHY"] :] == "the client left"

    @pytest.mark.parametrize(
        ("told", "shown"),
        [
            ({"count": 1, "bytes": 1, "duration_usec": 999}, "1 time, 1 byte, 999 us"),
            ({"count": 0, "bytes": 10**10, "duration_usec": 1000}, "0 times, 10000000000 bytes, 1.0 ms"),
            ({"duration_usec": 2_345_678}, "2.3 s"),
            ({"duration_usec": 10**16}, "10000000000000000"),
        ],
    )
    def test_counts_and_lengths_of_time(self, run: Run, tmp_path: Path, told: dict[str, int], shown: str) -> None:
        chain = Chain("acme", "s1", "src")
        _, out, _ = run("--file", write(tmp_path / "f", [chain.seal(Record(kind="file-closed", **told))]))
        assert out.splitlines()[1].endswith(f"  {shown}")

    @pytest.mark.parametrize(
        ("arguments", "records"),
        [
            (["--tenant", "acme"], 5),
            (["--session", "s2"], 2),
            (["--path", "/.git"], 1),
            (["--path", ".git/hooks/"], 1),
            (["--uid", "0"], 1),
            (["--operation", "rename"], 2),
            (["--decision", "denied"], 1),
            (["--since", "@1700000002"], 5),
            (["--until", "@1700000002"], 3),
            (["--since", "@1700000001.5", "--until", "@1700000003"], 2),
        ],
    )
    def test_filters(self, run: Run, file: Path, arguments: list[str], records: int) -> None:
        assert len(run("--file", file, "--json", *arguments)[1].splitlines()) == records

    @pytest.mark.parametrize("arguments", [["--json"], []])
    def test_nothing_found_is_told(self, run: Run, file: Path, arguments: list[str]) -> None:
        status, out, err = run("--file", file, "--tenant", "nobody", *arguments)
        assert (status, len(out.splitlines()), err) == (0, 0 if arguments else 1, "note: no such record was found\n")

    def test_json_is_what_the_journal_holds_and_can_be_verified(self, run: Run, file: Path, tmp_path: Path) -> None:
        status, out, _ = run("--file", file, "--json")
        assert status == 0
        shown = [json.loads(line) for line in out.splitlines()]
        assert shown[3]["FUSE_GATED_NEW_PATH"] == list(b"/b\xff")
        assert shown[3]["__REALTIME_TIMESTAMP"] == "1700000003000000"
        (tmp_path / "copy").write_text(out)
        assert (tmp_path / "copy").read_bytes() == file.read_bytes()

    def test_names_chosen_by_others_cannot_steer_the_terminal(self, run: Run, tmp_path: Path) -> None:
        evil = b"\x1b]0;owned\x07\n\xe2\x80\xae"
        told = [
            [(name, value + evil) for name, value in fields if name != "MESSAGE_ID"]
            + [("MESSAGE_ID", dict(fields)["MESSAGE_ID"]), ("FUSE_GATED_RULE", evil), ("FUSE_GATED_DETAIL", evil)]
            for fields in (Chain("t", "s", "e").seal(Record(kind="failed", operation="o", path=b"p", new_path=b"n", errno="E")),)
        ]
        write(tmp_path / "file", told)
        for arguments in ((), ("--verify",)):
            _, out, err = run("--file", tmp_path / "file", *arguments)
            assert all(line.isprintable() for line in (out + err).splitlines())
            assert "\\x1b" in out

    def test_a_long_table_stays_aligned(self, run: Run, tmp_path: Path) -> None:
        chain = Chain("acme", "s1", "src")
        told = [chain.seal(Record(kind="operation", operation="mkdir", path=b"d%d" % n)) for n in range(1234)]
        lines = run("--file", write(tmp_path / "file", told))[1].splitlines()
        assert len(lines) == 1235
        assert {line.index("/d") for line in lines[1:]} == {lines[0].index("PATH")}

    def test_an_absurd_time_does_not_hide_the_record(self, run: Run, tmp_path: Path) -> None:
        write(tmp_path / "file", story()[:1], 1e15)
        assert run("--file", tmp_path / "file")[1].splitlines()[1].startswith("?  ")

    @pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
    def test_colours_are_for_terminals(self, file: Path, no_color: str, coloured: bool) -> None:
        leader, follower = pty.openpty()
        try:
            environment = os.environ | {"NO_COLOR": no_color, "PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-m", "fuse_gated.commands.fuse_gatectl", "audit", "--file", str(file)]
            subprocess.run(command, check=True, stdout=follower, env=environment, timeout=60)
            out = os.read(leader, 65536).decode()
        finally:
            os.close(leader)
            os.close(follower)
        assert ("\x1b[31m" in out) is coloured
        assert ("\x1b[33m" in out) is coloured
        assert "refused" in out


class TestTimes:
    @pytest.mark.parametrize(
        ("told", "records"),
        [
            ("1h ago", 2),
            ("90min ago", 2),
            ("1 d ago", 3),
            ("2w ago", 3),
            ("30s ago", 1),
            ("999999999w ago", 3),
            ("now", 0),
            ("2001-01-01", 3),
            ("20010101T10:00:00+02:00", 3),
            ("@0", 3),
        ],
    )
    def test_since(self, run: Run, tmp_path: Path, told: str, records: int) -> None:
        content, now = b"", time.time()
        for ago, fields in zip((7200, 1800, 5), story(), strict=False):
            content += json_line(fields, int((now - ago) * 1e6))
        (tmp_path / "file").write_bytes(content)
        assert len(run("--file", tmp_path / "file", "--json", "--since", told)[1].splitlines()) == records

    @pytest.mark.parametrize("told", ["9:05", "09:05", "09:05:00"])
    def test_a_time_of_day_is_todays(self, run: Run, tmp_path: Path, told: str) -> None:
        # The date is asked for before and after: the test may run at midnight.
        possible = []
        for _ in range(2):
            moment = datetime.datetime.combine(datetime.date.today(), datetime.time(9, 5)).timestamp()
            write(tmp_path / "file", story()[:2], moment - 1)
            possible.append(len(run("--file", tmp_path / "file", "--json", "--since", told)[1].splitlines()))
        assert 1 in possible

    @pytest.mark.parametrize("told", ["tomorrow", "1x ago", "25:00", "2026-02-30", "", "@", "-1h"])
    def test_what_is_no_time(self, run: Run, file: Path, told: str) -> None:
        status, out, err = run("--file", file, f"--since={told}")
        assert (status, out) == (2, "")
        assert f"'{told}' is not a time" in err
        assert "hint: write 2026-01-31" in err


class TestVerifying:
    def test_whole(self, run: Run, file: Path) -> None:
        status, out, err = run("--file", file, "--verify")
        assert (status, err) == (0, "")
        assert out.splitlines()[:3] == [
            "acme/src session s1: whole: records 1..5",
            "emca/docs session s2: whole: records 1..2",
            "  note: it does not end with session-closed: it is still open, or its last records were cut off",
        ]
        assert "cannot show records cut off at the end, nor a whole chain written anew" in out

    def test_a_removed_and_an_altered_record(self, run: Run, file: Path) -> None:
        lines = file.read_bytes().splitlines(keepends=True)
        lines[5] = lines[5].replace(b"ENOSPC", b"ENOENT")
        del lines[1]
        file.write_bytes(b"".join(lines))
        status, out, _ = run("--file", file, "--verify")
        assert status == 1
        assert out.splitlines()[:4] == [
            "acme/src session s1: not whole: 4 records seen, up to record 5",
            "  missing: record 2 is missing, so record 3 cannot be checked",
            "  altered: record 4 was altered: its hash is not that of its contents",
            "emca/docs session s2: whole: records 1..2",
        ]

    def test_json(self, run: Run, file: Path) -> None:
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[1:]))
        status, out, err = run("--file", file, "--verify", "--json", "--tenant", "acme")
        (session,) = [json.loads(line) for line in out.splitlines()]
        assert status == 1
        assert (session["session"], session["records"], session["last"]) == ("s1", 4, 5)
        assert session["faults"][0]["kind"] == "missing"
        assert "cannot show" in err

    def test_records_from_before_the_login_are_part_of_a_tenants_session(self, run: Run, tmp_path: Path) -> None:
        stranger = Chain("", "s1", "")
        told = [stranger.seal(Record(kind="policy-applied"))]
        known = Chain("acme", "s1", "src", sequence=stranger.sequence, head=stranger.head)
        told += [known.seal(Record(kind="session-opened")), known.seal(Record(kind="session-closed"))]
        told += [Chain("", "s2", "").seal(Record(kind="login-refused"))]
        write(tmp_path / "file", told)
        status, out, _ = run("--file", tmp_path / "file", "--verify", "--tenant", "acme")
        assert status == 0
        assert out.startswith("acme/src session s1: whole: records 1..3\nThe chain cannot show")
        assert "\nsession s2: whole: records 1..1\n" in run("--file", tmp_path / "file", "--verify")[1]

    def test_one_session(self, run: Run, file: Path) -> None:
        assert "acme" not in run("--file", file, "--verify", "--session", "s2")[1]

    def test_none(self, run: Run, file: Path) -> None:
        status, out, _ = run("--file", file, "--verify", "--session", "s3")
        assert status == 0
        assert out.startswith("There are no records to verify.\n")

    def test_a_beginning_left_out_is_no_fault(self, run: Run, file: Path) -> None:
        status, out, _ = run("--file", file, "--verify", "--since", "@1700000003")
        assert status == 0
        assert "not there (--since leaves them out)" in out

    def test_a_beginning_that_is_gone_is_one_unless_the_file_was_rotated(self, run: Run, file: Path) -> None:
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(lines[1:]))
        assert run("--file", file, "--verify")[0] == 1
        older = file.with_name(file.name + ".1")
        older.write_bytes(lines[0])
        status, out, _ = run("--file", file, "--verify")
        assert status == 0
        assert f"the file was rotated, see {older.name}" in out
        assert "note: record 1" not in run("--file", older, "--file", file, "--verify")[1]

    def test_torn_lines_are_told(self, run: Run, file: Path) -> None:
        file.write_bytes(file.read_bytes() + b'{"MESSAGE":"half')
        status, _, err = run("--file", file, "--verify")
        assert status == 0
        assert "what is torn or foreign was skipped, and counts as no record: line 8\n" in err

    @pytest.mark.parametrize("filters", [["--uid", "0"], ["--path", "/"], ["--operation", "open"], ["--decision", "denied"]])
    def test_filters_that_would_break_the_chain_are_refused(self, run: Run, file: Path, filters: list[str]) -> None:
        status, out, err = run("--file", file, "--verify", *filters)
        assert (status, out) == (2, "")
        assert "needs every record" in err


class TestWhereRecordsAre:
    @pytest.mark.usefixtures("no_journal")
    def test_without_a_journal_the_file_in_the_runtime_directory(self, run: Run, tmp_path: Path) -> None:
        write(tmp_path / "audit.jsonl", story())
        assert len(run("--json")[1].splitlines()) == 7

    def test_where_the_settings_say(self, run: Run, tmp_path: Path, file: Path) -> None:
        run("--file", file)
        settings = tmp_path / "etc" / "fuse-gated.yaml"
        settings.write_text(f"audit: {{to: file, file: {file}}}\n")
        settings.chmod(0o644)
        assert len(run("--json")[1].splitlines()) == 7
        settings.write_text("audit: {to: file}\n")
        status, _, err = run()
        assert status == 1
        assert f"the audit file {tmp_path}/audit.jsonl cannot be read" in err
        assert "hint: name the right one with --file" in err

    @pytest.mark.usefixtures("no_journal")
    def test_settings_at_fault_are_told_and_the_default_is_read(self, run: Run, file: Path, tmp_path: Path) -> None:
        run("--file", file)
        (tmp_path / "etc" / "fuse-gated.yaml").write_text("audit: nonsense\n")
        (tmp_path / "etc" / "fuse-gated.yaml").chmod(0o644)
        write(tmp_path / "audit.jsonl", story())
        status, out, err = run("--json")
        assert (status, len(out.splitlines())) == (0, 7)
        assert "note: what fuse-gated.yaml says of the audit is not known" in err

    def test_in_the_journal_where_there_is_one(self, tmp_path: Path) -> None:
        """Beside a journald, with its /run: the command finds it as the daemon does."""
        ours = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "fuse_gated.commands.fuse_gatectl"]
        ours += ["--etc", str(tmp_path), "--runtime", str(tmp_path), "audit"]
        tmp_path.chmod(0o755)
        with running_journald() as journald:
            writer = JournalSocket.connect(journald.socket)
            assert all(writer.write(fields) for fields in story())
            writer.close()
            journald.sync()
            shown = [json.loads(line) for line in journald.command(*ours, "--json", "--tenant", "acme").splitlines()]
            assert [record["FUSE_GATED_SEQUENCE"] for record in shown] == ["1", "2", "3", "4", "5"]
            assert "s1: whole: records 1..5" in journald.command(*ours, "--verify", "--unit", "any")
            assert len(journald.command(*ours, "--unit", "other.service").splitlines()) == 1
            journald.command("mkdir", "/run/systemd/system")
            assert len(journald.command(*ours).splitlines()) == 1
            write(tmp_path / "audit.jsonl", story())
            told = journald.command("sh", "-c", '"$@" 2>&1', "sh", *ours)
            assert f"there are records in {tmp_path}/audit.jsonl too" in told


class TestCatalog:
    """systemd/fuse-gated.catalog, as journalctl itself reads it."""

    def test_every_kind_is_explained(self, tmp_path: Path) -> None:
        need("journalctl")
        catalogs = tmp_path / "usr/lib/systemd/catalog"
        catalogs.mkdir(parents=True)
        source = ROOT / "systemd" / "fuse-gated.catalog"
        (catalogs / source.name).write_bytes(source.read_bytes())
        journalctl = ["journalctl", f"--root={tmp_path}"]
        subprocess.run([*journalctl, "--update-catalog"], check=True, timeout=60)
        listed = subprocess.run([*journalctl, "--list-catalog"], check=True, capture_output=True, text=True, timeout=60).stdout
        assert sorted(line.split()[0] for line in listed.splitlines()) == sorted(
            message_id for message_id, _, _ in KINDS.values()
        )
        assert all(": " in line for line in listed.splitlines())
