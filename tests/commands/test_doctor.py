import json
import os
from pathlib import Path

import pytest

from fuse_gated.commands import doctor
from fuse_gated.commands.diagnosis import Check
from fuse_gated.commands.fuse_gatectl import main
from fuse_gated.edge.libfuse import LACKS


def run(etc: Path, runtime: Path, *arguments: str) -> int:
    return main(["--etc", str(etc), "--runtime", str(runtime), "doctor", *arguments])


def test_this_machine_as_json(etc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = run(etc, tmp_path, "--json")
    told = json.loads(capsys.readouterr().out)
    checks = [Check(**check) for check in told["checks"]]
    names = [check.name for check in checks]
    for name in (
        "kernel",
        "FUSE protocol",
        "re-sending",
        "fuse module",
        "/dev/fuse",
        "fusermount3",
        "openat2",
        "journal",
        "AppArmor",
    ):
        assert names.count(name) == 1
    for name in ("Python", "msgspec", "websockets", "PyYAML", "libseccomp", "libfuse 2", "posix1e", "systemd", "sdnotify"):
        assert names.count(name) == 1
    for name in ("configuration", "runtime directory", "daemon"):
        assert names.count(name) == 1
    assert {check.state for check in checks} <= {"ok", "warn", "fail"}
    assert all(check.advice for check in checks if check.state != "ok")
    assert Check("configuration", "ok", f"{etc} is right") in checks
    assert status == (1 if any(check.state == "fail" for check in checks) else 0)
    assert told["libfuse_lacks"] == LACKS


def test_what_is_printed(etc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [Check("one", "ok", "is well"), Check("another", "warn", "is odd\n", "mend it")]
    monkeypatch.setattr(doctor, "examine", lambda *_: checks)
    assert run(etc, tmp_path) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("ok    one      is well\nwarn  another  is odd\\n\n               -> mend it\n\n")
    assert all(f"  - {name}: {seen}\n" in printed for name, seen in LACKS.items())
    checks.append(Check("third", "fail", "is broken", "mend that first"))
    assert run(etc, tmp_path) == 1
    assert "fail  third    is broken\n" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else for a moment")
def test_who_may_not_mount_is_examined_too(etc: Path, tmp_path: Path) -> None:
    os.seteuid(65534)
    try:
        checks = {check.name: check for check in doctor.examine(etc, str(tmp_path))}
    finally:
        os.seteuid(0)
    assert checks["FUSE protocol"].state == "warn"
    assert "not asked" in checks["FUSE protocol"].message
    assert checks["configuration"].message == f"{etc}: may not be read by user nobody (chgrp nogroup {etc}; chmod g+rx {etc})"
