import json
import os
import pwd
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
    assert capsys.readouterr().out.splitlines() == [
        "warning  no tenant is defined: nobody can log in",
        f"{tmp_path}/etc is right. Mind the warnings.",
    ]


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
        f"{etc} is right. Mind the warnings.",
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
    nowhere = tmp_path / "nowhere"
    assert f"fault    {nowhere}: there is no such directory (install -d -m 755 {nowhere})\n" in capsys.readouterr().out


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
    assert told[0] == (
        f"warning  tls.certificate: {tmp_path}/server.pem: No such file or directory; here the daemon would not start"
    )
    assert told[1].startswith("TENANT")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, who reads everything")
class TestWhoReadsIt:
    """root checks, and the daemon reads as somebody else."""

    @pytest.fixture(autouse=True)
    def _settings(self, etc: Path) -> None:
        write(etc / "fuse-gated.yaml", "user: nobody\n")

    @pytest.mark.parametrize(
        ("name", "mode", "more"), [("policy.yaml", 0o600, "r"), ("policy.d", 0o700, "rx"), (".", 0o700, "rx")]
    )
    def test_what_the_daemon_may_not_read(
        self, etc: Path, capsys: pytest.CaptureFixture[str], name: str, mode: int, more: str
    ) -> None:
        write(etc / "policy.d" / "more.yaml", "tenants: {}")
        (etc / name).chmod(mode)
        assert main(["check", str(etc)]) == 4
        told = capsys.readouterr()
        place = etc / name
        assert f"fault    {place}: may not be read by user nobody (chgrp nogroup {place}; chmod g+{more} {place})\n" in told.out
        assert told.out.endswith(f"{etc} has one fault; the daemon would not take it.\n")
        assert told.err == ""

    def test_the_settings_alone_are_read_by_root_too(self, etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (etc / "fuse-gated.yaml").chmod(0o600)
        assert main(["check", str(etc)]) == 0
        place = etc / "fuse-gated.yaml"
        fault = f"{place}: may not be read by user nobody (chgrp nogroup {place}; chmod g+r {place})"
        warning = f"{fault}: under systemd the daemon would not start"
        assert capsys.readouterr().out.startswith(f"warning  {warning}\n")

    def test_a_group_that_may_read_is_enough(self, etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
        group = pwd.getpwnam("nobody").pw_gid
        for path in (etc, etc / "policy.yaml", etc / "fuse-gated.yaml"):
            os.chown(path, 0, group)
            path.chmod(0o750 if path == etc else 0o640)
        assert main(["check", str(etc)]) == 0
        assert capsys.readouterr().out.endswith(f"{etc} is right.\n")

    def test_any_group_of_the_user_is_enough(self, etc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The user may have been there before, with groups of its own."""
        for path in (etc, etc / "policy.yaml", etc / "fuse-gated.yaml"):
            os.chown(path, 0, 4711)
            path.chmod(0o750 if path == etc else 0o640)
        assert main(["check", str(etc)]) == 4
        monkeypatch.setattr(os, "getgrouplist", lambda _name, group: [group, 4711])
        assert main(["check", str(etc)]) == 0

    def test_a_way_that_only_root_may_walk_is_no_hindrance(self, etc: Path) -> None:
        etc.parent.chmod(0o700)
        assert main(["check", str(etc)]) == 0

    def test_a_user_that_is_not_there_is_nobody(self, etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write(etc / "fuse-gated.yaml", "user: not-here\n")
        (etc / "policy.yaml").chmod(0o600)
        assert main(["check", str(etc)]) == 4
        assert "may not be read by user nobody" in capsys.readouterr().out

    def test_root_as_the_daemons_user_is_left_to_the_daemon(self, etc: Path) -> None:
        write(etc / "fuse-gated.yaml", "user: root\n")
        (etc / "policy.yaml").chmod(0o600)
        assert main(["check", str(etc)]) == 0


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
