import io

import pytest

from fuse_gated.commands.output import Style, complain, pairs, plain, print_json, shown_size, shown_time, table
from fuse_gated.errors import ConfigurationError, OperatorError, RefusedError, UsageError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Style(Terminal()).paint("bad", "no") == "\x1b[31mno\x1b[0m"
    assert Style(Terminal()).paint("", "no") == "no"
    assert Style(io.StringIO()).paint("bad", "no") == "no"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Style(Terminal()).paint("bad", "no") == "no"


def test_nothing_steers_the_terminal() -> None:
    assert plain("docs é 7") == "docs é 7"
    assert plain("\x1b]0;owned\x07\n\u202e\udcff") == "\\x1b]0;owned\\x07\\n\\u202e\\udcff"
    assert plain(7) == "7"


def test_tables_are_aligned() -> None:
    assert table(("A", "LONG"), [("one", 2), ("3", "\x07")]) == ["A    LONG", "one  2", "3    \\x07"]
    assert table(("A", "B"), []) == ["A  B"]
    assert pairs([("name", "x"), ("n", ""), ("nn", 3)]) == ["name  x", "n", "nn    3"]
    assert pairs([]) == []


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (150 * 1024, "150 KiB"), (5 * 2**40, "5.0 TiB"), (2**62, "4096 PiB")],
)
def test_sizes(count: int, shown: str) -> None:
    assert shown_size(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-5, "0s"), (59.9, "59s"), (65, "1m 05s"), (7500, "2h 05m"), (4 * 86400 + 3 * 3600, "4d 03h")]
)
def test_times(seconds: float, shown: str) -> None:
    assert shown_time(seconds) == shown


def test_json_is_ascii(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"path": "é\x1b"})
    assert capsys.readouterr().out == '{\n  "path": "\\u00e9\\u001b"\n}\n'


def test_complaints_and_their_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert complain("program", OperatorError("the port is taken", "choose another")) == 1
    assert complain("program", UsageError("what?")) == 2
    assert complain("program", RefusedError("no\x1b")) == 3
    assert complain("program", ConfigurationError("two faults", "mend them", ("policy.yaml:1:1: a", "policy.yaml:2:1: b"))) == 4
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        "program: the port is taken\n  hint: choose another\n"
        "program: what?\n"
        "program: no\\x1b\n"
        "program: two faults\n  policy.yaml:1:1: a\n  policy.yaml:2:1: b\n  hint: mend them\n"
    )
