import json
import time
from typing import Any

import pytest

from fuse_gated.commands.fuse_gatectl import main
from fuse_gated.errors import OperatorError

SESSION: dict[str, Any] = {
    "session": "s1",
    "tenant": "acme",
    "export": "docs",
    "state": "mounted",
    "driver": "kernel",
    "address": "192.0.2.7:5000",
    "since": 1700000000.0,
    "mount": "/run/fuse-gated/mnt/acme/docs",
    "operations": 12345,
    "bytes_read": 2048,
    "bytes_written": 7,
    "in_flight": 1,
    "open_files": 2,
    "denied": 3,
    "pid": 4711,
    "user_agent": "fuse-gate/\x1b[31m",
}


def unknown(session: str) -> None:
    raise OperatorError(f"there is no session {session}", "fuse-gatectl sessions lists them")


@pytest.fixture
def runtime(control_socket: Any) -> list[str]:
    control_socket.answers = {
        "sessions": lambda: [SESSION, SESSION | {"session": "s2", "state": "odd\n", "since": time.time()}],
        "show": lambda **_: {"limits": {"read": 5}, "paths": ["a", "b"], "resume": None} | SESSION,
        "kick": lambda session: {} if session == "s1" else unknown(session),
    }
    return ["--runtime", str(control_socket.runtime)]


def test_sessions_are_listed(runtime: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*runtime, "sessions"]) == 0
    heading, first, second = capsys.readouterr().out.splitlines()
    assert " ".join(heading.split()) == "SESSION TENANT EXPORT STATE DRIVER ADDRESS SINCE OPS READ WRITTEN DENIED MOUNT"
    assert first.split()[:6] == ["s1", "acme", "docs", "mounted", "kernel", "192.0.2.7:5000"]
    assert first.split()[-7:] == ["12345", "2.0", "KiB", "7", "B", "3", "/run/fuse-gated/mnt/acme/docs"]
    assert second.split()[:4] == ["s2", "acme", "docs", "odd\\n"]
    assert first.index("/run") == second.index("/run") == heading.index("MOUNT")


def test_no_sessions(runtime: list[str], control_socket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    control_socket.answers["sessions"] = list
    assert main([*runtime, "sessions"]) == 0
    assert capsys.readouterr().out == "no sessions\n"
    assert main([*runtime, "sessions", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_sessions_as_json(runtime: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*runtime, "sessions", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0] == SESSION


def test_one_session_is_shown(runtime: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    assert main([*runtime, "show", "s1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    monkeypatch.undo()
    time.tzset()
    assert [line.split()[0] for line in lines] == [*SESSION, "limits.read", "paths", "resume"]
    shown = {name: value.strip() for name, _, value in (line.partition(" ") for line in lines)}
    assert shown["since"] == "2023-11-14 22:13:20 +0000"
    assert shown["bytes_read"] == "2048 (2.0 KiB)"
    assert shown["user_agent"] == "fuse-gate/\\x1b[31m"
    assert shown["limits.read"] == "5"
    assert shown["paths"] == "a, b"
    assert shown["resume"] == ""
    assert main([*runtime, "show", "s1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["limits"] == {"read": 5}


def test_an_answer_that_is_none(runtime: list[str], control_socket: Any, capsys: pytest.CaptureFixture[str]) -> None:
    control_socket.answers["show"] = lambda **_: 7
    assert main([*runtime, "show", "s1"]) == 1
    assert "makes no sense" in capsys.readouterr().err


def test_kick_tries_every_session(runtime: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*runtime, "kick", "s1"]) == 0
    assert capsys.readouterr() == ("session s1 ends\n", "")
    assert main([*runtime, "kick", "s8", "s1", "s9"]) == 1
    assert capsys.readouterr() == (
        "session s1 ends\n",
        "fuse-gatectl: s8: there is no session s8 (fuse-gatectl sessions lists them)\n"
        "fuse-gatectl: s9: there is no session s9 (fuse-gatectl sessions lists them)\n",
    )
    assert main([*runtime, "kick", "s8", "s1", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {
        "kicked": ["s1"],
        "failed": {"s8": "there is no session s8 (fuse-gatectl sessions lists them)"},
    }
    assert main([*runtime, "kick", "s1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"kicked": ["s1"], "failed": {}}
