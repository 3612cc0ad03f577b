import json
import os
from pathlib import Path

import pytest

from fuse_gated.commands.fuse_gatectl import main

TENANTS = """\
tenants:
  acme: {tokens: [{sha256: "%s", expires: 2020-01-01}], users: ["*"], groups: [adm]}
""" % ("b" * 64)


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(mode=0o755, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def test_what_is_right(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--etc", str(etc), "check"]) == 0
    assert capsys.readouterr().out == f"TENANT  TOKENS  USERS   RULES\nacme    1       daemon  3\n{etc} is right.\n"


def test_the_files_of_the_package_are_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (Path(__file__).parents[2] / "etc").iterdir():
        write(tmp_path / "etc" / path.name, path.read_text())
    assert main(["check", str(tmp_path / "etc")]) == 0
    assert capsys.readouterr().out == f"warning  no tenant is defined: nobody can log in\n{tmp_path}/etc is right.\n"


def test_what_looks_wrong(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(etc / "policy.yaml", TENANTS)
    write(etc / "policy.d" / "more.yml", "tenants: {}")
    assert main(["check", str(etc)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "warning  policy.d/more.yml: is not read: its name does not end in .yaml",
        "warning  policy.yaml:2: tenant 'acme': the token bbbbbbbb… expired on 2020-01-01",
        "warning  policy.yaml:2: tenant 'acme': no token is valid, so nobody can log in (fuse-gatectl token new)",
        "warning  policy.yaml:2: tenant 'acme': users '*' lets every user of this server into its mounts",
        "warning  policy.yaml:2: tenant 'acme': no rule allows anything",
        "TENANT  TOKENS  USERS    RULES",
        "acme    1       *, @adm  0",
        f"{etc} is right.",
    ]


def test_every_fault_of_every_file_at_once(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(etc / "fuse-gated.yaml", "max_session: 3\n")
    write(etc / "policy.yaml", "tenants:\n  acme: {users: [nobody-here]}\n  beta: {audit: loud}\n")
    assert main(["check", str(etc)]) == 4
    assert capsys.readouterr().out.splitlines() == [
        "fault    fuse-gated.yaml:1:1: unknown key 'max_session' in the settings (did you mean 'max_sessions'?)",
        "fault    policy.yaml:3:17: 'loud' is not one of denials, writes, opens, everything",
        f"{etc} has 2 faults; the daemon would not take it.",
    ]
    write(etc / "policy.yaml", "tenants:\n  acme: {users: [nobody-here], groups: [nor-here]}\n  beta: {users: [daemon]}\n")
    write(etc / "fuse-gated.yaml", "")
    assert main(["check", str(etc)]) == 4
    told = capsys.readouterr().out
    assert "policy.yaml:2: tenant 'acme': this server has no user 'nobody-here'" in told
    assert "policy.yaml:2: tenant 'acme': this server has no group 'nor-here'" in told


def test_no_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tmp_path / "nowhere")]) == 4
    assert f"fault    {tmp_path}/nowhere: there is no such directory\n" in capsys.readouterr().out


def test_the_same_fault_is_told_once(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    etc.chmod(0o777)
    assert main(["check", str(etc)]) == 4
    assert capsys.readouterr().out == (
        f"fault    {etc}: can be written by others (mode 0777) (chmod go-w {etc})\n"
        f"{etc} has one fault; the daemon would not take it.\n"
    )


def test_the_files_of_tls(etc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "server.pem", "")
    write(tmp_path / "server.key", "", 0o644)
    write(etc / "fuse-gated.yaml", f"tls: {{certificate: {tmp_path}/server.pem, key: {tmp_path}/server.key}}\n")
    assert main(["check", str(etc)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == (
        f"warning  tls.key: others can read or write {tmp_path}/server.key (mode 0644): chmod 640 {tmp_path}/server.key"
    )
    os.chmod(tmp_path / "server.key", 0o640)
    (tmp_path / "server.pem").unlink()
    assert main(["check", str(etc)]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"warning  tls.certificate: {tmp_path}/server.pem: No such file or directory"
    assert told[1].startswith("TENANT")


def test_json(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(etc), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "directory": str(etc),
        "faults": [],
        "warnings": [],
        "tenants": [
            {
                "name": "acme",
                "place": "policy.yaml:2",
                "tokens": 1,
                "users": ["daemon"],
                "groups": [],
                "ownership": "mapped",
                "rules": 3,
                "audit": "writes",
            }
        ],
    }
    write(etc / "fuse-gated.yaml", "a: 1\n")
    assert main(["check", str(etc), "--json"]) == 4
    assert len(json.loads(capsys.readouterr().out)["faults"]) == 1
