"""standalone.py: what the daemon is given, by a real supervisor beside a real mount keeper, by nobody, and by systemd."""

import os
import signal
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import mounts_beneath, need
from harness.supervised import PATIENCE, SETTINGS, Supervise, runtime_directory, supervisors

from fuse_gated import standalone
from fuse_gated.config.settings import Audit, Settings
from fuse_gated.edge import process
from fuse_gated.edge.systemd import Passed
from fuse_gated.errors import OperatorError
from fuse_gated.standalone import DaemonParts


@pytest.fixture
def runtime() -> Iterator[Path]:
    with runtime_directory() as path:
        yield path


@pytest.fixture
def supervise(runtime: Path) -> Iterator[Supervise]:
    with supervisors(runtime) as start:
        yield start


def test_two_on_one_runtime_directory(supervise: Supervise, runtime: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first = supervise()
    first.hear("mounted")
    assert supervise().child.wait(PATIENCE) == 1
    assert "another fuse-gated runs" in capfd.readouterr().err
    assert mounts_beneath(runtime) == [runtime / "mnt/acme/web"]
    first.child.send_signal(signal.SIGHUP)
    first.hear("reload")


def test_what_stands_in_the_way_is_told_once(supervise: Supervise, runtime: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runtime.mkdir()
    os.chown(runtime, 4711, 4711)
    assert supervise().child.wait(PATIENCE) == 1
    assert capfd.readouterr().err.count("runtime directory not ours") == 1
    os.chown(runtime, 0, 0)
    (runtime / "mnt").symlink_to("/")
    assert supervise().child.wait(PATIENCE) == 1
    assert capfd.readouterr().err.count("runtime directory not ours") == 1
    (runtime / "mnt").unlink()
    (runtime / "audit.jsonl").symlink_to("/etc/passwd")
    assert supervise().child.wait(PATIENCE) == 1
    assert capfd.readouterr().err.count("cannot make the audit file") == 1
    assert os.stat("/etc/passwd").st_uid == 0


def test_an_audit_file_is_made_where_it_is_wanted_only(supervise: Supervise, runtime: Path) -> None:
    elsewhere = runtime.parent / "elsewhere.jsonl"
    for audit in (Audit(to="journal"), Audit(to="file", file=str(elsewhere))):
        assert not elsewhere.exists()
        supervised = supervise(settings=Settings(user="nobody", audit=audit))
        supervised.hear("mounted")
        supervised.child.end(PATIENCE)
        assert not (runtime / "audit.jsonl").exists()
    assert (elsewhere.stat().st_uid, elsewhere.stat().st_mode) == (NOBODY, stat.S_IFREG | 0o600)


NOBODY = 65534


def test_an_audit_file_that_is_named_and_there_is_left_as_it_is(supervise: Supervise, runtime: Path) -> None:
    """It may be anything, and would be given away."""
    named = runtime.parent / "named"
    named.write_text("precious")
    named.chmod(0o640)
    supervised = supervise(settings=Settings(user="nobody", audit=Audit(to="file", file=str(named))))
    supervised.hear("mounted")
    supervised.child.end(PATIENCE)
    assert (named.stat().st_uid, named.stat().st_mode) == (0, stat.S_IFREG | 0o640)


def test_where_others_can_make_files_root_makes_none(supervise: Supervise, runtime: Path) -> None:
    """Else one of them could have put another's file there, to have it given to the daemon."""
    for owner, mode in ((NOBODY, 0o755), (0, 0o777)):
        directory = runtime.parent / f"{owner}"
        directory.mkdir()
        directory.chmod(mode)
        os.chown(directory, owner, owner)
        supervised = supervise(settings=Settings(user="nobody", audit=Audit(to="file", file=str(directory / "audit"))))
        supervised.hear("mounted")
        supervised.child.end(PATIENCE)
        assert os.listdir(directory) == []


def test_where_the_named_files_directory_is_missing(supervise: Supervise, capfd: pytest.CaptureFixture[str]) -> None:
    settings = Settings(user="nobody", audit=Audit(to="file", file="/nowhere/at/all"))
    assert supervise(settings=settings).child.wait(PATIENCE) == 1
    assert "cannot make the audit file /nowhere/at/all" in capfd.readouterr().err


def test_the_systems_own_audit_file_outlives_a_boot(
    supervise: Supervise, runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the system's runtime directory, which lies in memory, it lies beside other logs; and is made anew when it was
    rotated away."""
    logs = tmp_path / "log"
    monkeypatch.setattr("fuse_gated.edge.journal.RUNTIME", str(runtime))
    monkeypatch.setattr("fuse_gated.edge.journal.LOG_DIRECTORY", str(logs))
    supervised = supervise()
    supervised.hear("mounted")
    assert logs.stat().st_mode == stat.S_IFDIR | 0o755
    file = logs / "audit.jsonl"
    assert (file.stat().st_uid, file.stat().st_mode) == (NOBODY, stat.S_IFREG | 0o600)
    file.rename(logs / "audit.jsonl.1")
    supervised.child.send_signal(signal.SIGHUP)
    supervised.hear("reload")
    assert (file.stat().st_uid, file.stat().st_mode) == (NOBODY, stat.S_IFREG | 0o600)
    file.unlink()
    file.symlink_to("/etc/passwd")
    supervised.child.send_signal(signal.SIGHUP)
    supervised.hear("reload")
    assert os.stat("/etc/passwd").st_uid == 0
    supervised.child.end(PATIENCE)
    assert not (runtime / "audit.jsonl").exists()


def test_a_user_that_does_not_exist_is_nobody_with_a_warning(supervise: Supervise, capfd: pytest.CaptureFixture[str]) -> None:
    supervised = supervise(settings=Settings(user="no-such-user", audit=Audit(to="file")))
    nobody = process.find_account("nobody")
    assert nobody is not None
    assert supervised.hear("mounted")["uid"] == [nobody.uid] * 3
    assert "warning: there is no user no-such-user" in capfd.readouterr().err


def test_the_daemon_never_runs_as_root(runtime: Path) -> None:
    with pytest.raises(OperatorError, match="must not run as root"):
        standalone.supervise(Settings(user="root"), runtime, [], lambda _: 0)


def test_without_any_user_to_be_it_says_what_to_do(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "find_account", lambda _: None)
    with pytest.raises(OperatorError, match="useradd"):
        standalone.supervise(SETTINGS, runtime, [], lambda _: 0)


# Without root.


def test_an_ordinary_user_has_sockets_and_a_directory_but_no_keeper() -> None:
    need("root")  # to be several people

    def main() -> int:
        process.drop_to(4711, 4711, [])
        with tempfile.TemporaryDirectory() as place:
            runtime = Path(place) / "run"
            with socket.create_server(("127.0.0.1", 0)) as listener:
                parts = standalone.unprivileged_parts(runtime, [listener])
                assert parts == DaemonParts((listener,), parts.control, None, runtime)
                status = (runtime / "control.sock").stat()
                assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (4711, 0o600)
                assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
                standalone.release(parts)
                standalone.release(parts)
                assert listener.fileno() >= 0
                assert list(runtime.iterdir()) == []
                with pytest.raises(OperatorError, match="runtime directory not ours"):
                    standalone.unprivileged_parts(Path("/run"), [listener])
        return 0

    assert process.spawn(main).wait(PATIENCE) == 0


# With everything from systemd.


def test_what_systemd_passes_is_what_the_daemon_gets(tmp_path: Path) -> None:
    need("root")

    def main() -> int:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as control, socket.socket() as keeper:
            whole = Passed((listener,), control, keeper)
            with pytest.raises(OperatorError, match="must not run as root"):
                standalone.unit_parts(tmp_path, whole)
            process.drop_to(4711, 4711, [])
            assert standalone.unit_parts(tmp_path, whole) == DaemonParts((listener,), control, keeper, tmp_path)
            for missing, what in (
                (Passed((), control, keeper), "nothing to listen on"),
                (Passed((listener,), None, keeper), "no socket for fuse-gatectl"),
            ):
                with pytest.raises(OperatorError, match=what):
                    standalone.unit_parts(tmp_path, missing)
        return 0

    assert process.spawn(main).wait(PATIENCE) == 0
