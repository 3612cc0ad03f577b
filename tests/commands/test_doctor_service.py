import os
from pathlib import Path
from typing import Any

import pytest

from fuse_gated import __version__
from fuse_gated.commands.diagnosis import Check
from fuse_gated.commands.doctor_service import checks, configuration, daemon, runtime_directory
from fuse_gated.errors import OperatorError

STATUS: dict[str, Any] = {
    "version": __version__,
    "pid": 4711,
    "sessions": 2,
    "tenants": 1,
    "uptime": 65.0,
    "mountd": True,
    "drivers": ["kernel", "libfuse"],
}


def test_configuration(etc: Path) -> None:
    assert list(configuration(etc)) == [Check("configuration", "ok", f"{etc} is right")]
    (etc / "policy.yaml").write_text("tenants: {}\n")
    assert [check.state for check in configuration(etc)] == ["warn"]
    (etc / "policy.yaml").write_text("tenants: []\na: 1\n")
    assert [(check.state, check.message) for check in configuration(etc)] == [
        ("fail", "policy.yaml:1:10: expected a mapping for tenants, found a list"),
        ("fail", "policy.yaml:2:1: unknown key 'a' in the policy (known are tenants)"),
    ]


def test_runtime_directory(tmp_path: Path) -> None:
    runtime = tmp_path / "runtime"
    assert runtime_directory(runtime) == Check("runtime directory", "ok", f"{runtime} is not there yet: the daemon makes it")
    runtime.mkdir(mode=0o755)
    assert runtime_directory(runtime) == Check("runtime directory", "ok", f"{runtime} is ours")
    runtime.chmod(0o1777)
    assert runtime_directory(runtime).message == f"others can write into {runtime} (mode 1777)"
    (tmp_path / "link").symlink_to(runtime)
    assert runtime_directory(tmp_path / "link").message == f"{tmp_path}/link is not a directory"
    (tmp_path / "file").touch()
    assert runtime_directory(tmp_path / "file" / "runtime").message == f"{tmp_path}/file/runtime: Not a directory"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a directory away")
def test_a_runtime_directory_of_another_user(tmp_path: Path) -> None:
    os.chown(tmp_path, 4242, 0)
    assert runtime_directory(tmp_path).message == f"{tmp_path} belongs to uid 4242"
    os.chown(tmp_path, 0, 0)


def test_daemon(control_socket: Any) -> None:
    runtime = str(control_socket.runtime)
    told = f"version {__version__}, pid 4711, up 1m 05s, sessions: 2"
    control_socket.answers["status"] = lambda: STATUS
    assert daemon(runtime) == Check("daemon", "ok", f"{told}, drivers: kernel, libfuse")
    control_socket.answers["status"] = lambda: STATUS | {"mountd": False}
    assert daemon(runtime) == Check(
        "daemon", "fail", f"{told}; the mount keeper does not answer", "systemctl restart fuse-gated-mountd"
    )
    control_socket.answers["status"] = lambda: STATUS | {"mountd": False, "drivers": ["libfuse"]}
    assert daemon(runtime).state == "ok"
    control_socket.answers["status"] = lambda: STATUS | {"version": "0.0.1"}
    assert daemon(runtime).state == "warn"
    assert "0.0.1" in daemon(runtime).message


def test_no_daemon(tmp_path: Path, control_socket: Any) -> None:
    check = daemon(str(tmp_path))
    assert (check.state, check.message) == ("warn", f"no daemon runs in {tmp_path}")

    def refused() -> None:
        raise OperatorError("not now", "wait")

    control_socket.answers["status"] = refused
    assert daemon(str(control_socket.runtime)) == Check("daemon", "warn", "not now", "wait")


def test_all(etc: Path, tmp_path: Path) -> None:
    names = [check.name for check in checks(etc, str(tmp_path))]
    assert names == ["configuration", "runtime directory", "daemon"]
