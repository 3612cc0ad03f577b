import json
from typing import Any

import pytest

from fuse_gated.commands import drain
from fuse_gated.commands.fuse_gatectl import main


class Daemon:
    """What the daemon answers: one session fewer each time that it is asked."""

    def __init__(self, sessions: int) -> None:
        self.sessions = sessions
        self.draining = False
        self.undone_after = 99
        self.moves = False

    def drain(self, undo: bool, move: bool = False) -> dict[str, Any]:
        self.moves = move
        self.draining = not undo
        return self._status()

    def status(self) -> dict[str, Any]:
        self.sessions -= 1
        self.undone_after -= 1
        self.draining = self.undone_after > 0
        return self._status()

    def _status(self) -> dict[str, Any]:
        return {"version": "1", "held": self.sessions, "draining": self.draining}


@pytest.fixture
def daemon(control_socket: Any, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    monkeypatch.setattr(drain, "_LOOK_EVERY", 0)
    daemon = Daemon(2)
    control_socket.answers = {"drain": daemon.drain, "status": daemon.status}
    return daemon


@pytest.fixture
def runtime(control_socket: Any) -> list[str]:
    return ["--runtime", str(control_socket.runtime)]


def test_it_drains_and_takes_it_back(daemon: Daemon, runtime: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*runtime, "drain"]) == 0
    assert daemon.draining
    assert main([*runtime, "drain", "--undo"]) == 0
    assert not daemon.draining
    assert capsys.readouterr().out == "draining: 2 sessions left\nnew sessions are taken\n"


def test_it_waits_for_the_last_session(daemon: Daemon, runtime: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*runtime, "drain", "--wait"]) == 0
    assert capsys.readouterr().out == "draining: 2 sessions left\ndraining: 1 session left\ndraining: no sessions left\n"


def test_as_json(daemon: Daemon, runtime: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*runtime, "drain", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"draining": True, "sessions": 2}
    assert main([*runtime, "drain", "--wait", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"draining": True, "sessions": 0}


def test_somebody_takes_it_back_meanwhile(daemon: Daemon, runtime: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    daemon.undone_after = 1
    assert main([*runtime, "drain", "--wait"]) == 1
    assert "the daemon takes new sessions again" in capsys.readouterr().err


def test_both_make_no_sense(runtime: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main([*runtime, "drain", "--wait", "--undo"])
    assert raised.value.code == 2


def test_it_moves_the_sessions_and_waits_for_the_last(
    runtime: list[str], daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*runtime, "drain", "--move"]) == 0
    assert daemon.moves
    assert capsys.readouterr().out.splitlines()[-1] == "draining: no sessions left"
