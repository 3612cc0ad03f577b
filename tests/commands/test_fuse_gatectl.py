import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuse_gated import __version__
from fuse_gated.commands import fuse_gatectl, places
from fuse_gated.commands.fuse_gatectl import main, parser


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["show"], ["kick"], ["token"], ["token", "new"], ["explain", "acme"], ["sessions", "more"]]
)
def test_a_wrong_command_line_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2
    assert capsys.readouterr().err.startswith("usage: fuse-gatectl")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--version"])
    assert raised.value.code == 0
    assert capsys.readouterr().out == f"fuse-gatectl {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["sessions"],
        ["show", "s"],
        ["kick", "s"],
        ["explain", "t", "/p", "read"],
        ["check"],
        ["token", "new", "t"],
        ["audit"],
        ["doctor"],
    ],
)
def test_every_subcommand_has_json_and_help(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert parser().parse_args([*arguments, "--json"]).json is True
    assert parser().parse_args(arguments).json is False
    with pytest.raises(SystemExit) as raised:
        main([*arguments, "--help"])
    assert raised.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_the_directories_have_defaults() -> None:
    options = parser().parse_args(["sessions"])
    assert (options.etc, options.runtime_directory) == (Path("/etc/fuse-gated"), "/run/fuse-gated")


def test_audit_reads_where_the_global_option_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "audit.jsonl").write_text("what is no record is told of, with the file's name\n")
    (tmp_path / "other").mkdir()
    assert main(["--runtime", str(tmp_path), "audit"]) == 0
    assert f"{tmp_path}/audit.jsonl" in capsys.readouterr().err
    assert main(["--runtime", str(tmp_path / "other"), "audit", "--runtime", str(tmp_path)]) == 0
    assert f"{tmp_path}/audit.jsonl" in capsys.readouterr().err


def test_no_daemon_is_told_with_a_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--runtime", str(tmp_path), "sessions"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"fuse-gatectl: no daemon runs in {tmp_path}\n"
        "  hint: start it: systemctl start fuse-gated; or name its directory: --runtime DIR\n"
    )


def test_an_ordinary_users_daemon_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own, system = tmp_path / "login" / "fuse-gated", tmp_path / "system"
    tmp_path.chmod(0o755)
    own.mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(own.parent))
    monkeypatch.setattr(places, "RUNTIME", system)

    def asked(user: int) -> str:
        monkeypatch.setattr(os, "geteuid", lambda: user)
        assert main(["sessions"]) == 1
        err = capsys.readouterr().err
        start = "systemctl start fuse-gated" if user == 0 else "fuse-gated"
        assert f"  hint: start it: {start}; or name its directory: --runtime DIR\n" in err
        return err.splitlines()[0].removeprefix("fuse-gatectl: no daemon runs in ")

    assert asked(0) == str(system)
    assert asked(1234) == str(own)
    system.mkdir()
    assert asked(1234) == str(own)
    own.rmdir()
    assert asked(1234) == str(system)
    system.rmdir()
    assert asked(1234) == str(own)
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert asked(1234) == "/run/user/1234/fuse-gated"
    assert main(["--runtime", str(tmp_path), "sessions"]) == 1
    assert f"no daemon runs in {tmp_path}\n" in capsys.readouterr().err


def test_ctrl_c_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(fuse_gatectl.sessions, "run_sessions", interrupted)
    assert main(["sessions"]) == 130


def test_a_reader_that_has_seen_enough_is_no_fault(etc: Path) -> None:
    """As with `fuse-gatectl … | head -0`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "fuse_gated.commands.fuse_gatectl", "--etc", str(etc), "check", "--json"]
    try:
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


def test_it_runs_as_a_program(etc: Path) -> None:
    command = [sys.executable, "-m", "fuse_gated.commands.fuse_gatectl", "--etc", str(etc), "check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("is right.\n")
