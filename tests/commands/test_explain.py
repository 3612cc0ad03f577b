import json
from pathlib import Path

import pytest

from fuse_gated.commands.fuse_gatectl import main


def explain(etc: Path, *arguments: str) -> int:
    return main(["--etc", str(etc), "explain", *arguments])


@pytest.mark.parametrize(
    ("arguments", "status", "lines"),
    [
        (
            ["acme", "/src/main.c", "write"],
            0,
            ["allowed: write /src/main.c (tenant acme)", "  rule    /src/** (policy.yaml:7)", "  reason  allowed by the rule"],
        ),
        (
            ["acme", "README", "open-write"],
            1,
            [
                "denied: open-write /README (tenant acme)",
                "  rule    none",
                "  errno   EACCES",
                "  reason  no rule allows write here",
            ],
        ),
        (
            ["acme", "/.env.local", "read"],
            1,
            [
                "denied: read /.env.local (tenant acme)",
                "  rule    /.env* (policy.yaml:6)",
                "  errno   ENOENT",
                "  reason  hidden by the rule",
            ],
        ),
        (["acme", "/src/a", "rename", "/src/b"], 0, ["allowed: rename /src/a -> /src/b (tenant acme)"]),
        (["acme", "/src/a", "rename", "/b"], 1, ["denied: rename /src/a -> /b (tenant acme)"]),
        (["acme", "/", "readdir"], 0, ["allowed: readdir / (tenant acme)"]),
        (
            ["acme", "/src/d", "rename", "/src/e", "--directory", "--replaces"],
            0,
            ["allowed: rename /src/d -> /src/e (tenant acme)"],
        ),
    ],
)
def test_verdicts(arguments: list[str], status: int, lines: list[str], etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(etc, *arguments) == status
    assert capsys.readouterr().out.splitlines()[: len(lines)] == lines


def test_what_is_said_of_a_directory_may_differ(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory moves only if nothing beneath it gains by it: here /src/d/secret could be read at its new place."""
    secret = '- {path: "/src/d/secret", deny: [read]}\n      - {path: "/src/**"'
    policy = (etc / "policy.yaml").read_text()
    (etc / "policy.yaml").write_text(policy.replace('- {path: "/src/**"', secret))
    assert explain(etc, "acme", "/src/d", "rename", "/src/e", "--json") == 0
    assert json.loads(capsys.readouterr().out)["errno"] is None
    assert explain(etc, "acme", "/src/d", "rename", "/src/e", "--directory", "--json") == 1
    assert json.loads(capsys.readouterr().out)["errno"] == "EXDEV"


def test_json(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(etc, "acme", "/src/a", "link", "/.env", "--json") == 1
    assert json.loads(capsys.readouterr().out) == {
        "tenant": "acme",
        "operation": "link",
        "path": "/src/a",
        "other": "/.env",
        "allowed": False,
        "errno": "EACCES",
        "rule": "",
        "reason": "no rule allows write here",
    }
    assert explain(etc, "acme", "/src/a", "read", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "tenant": "acme",
        "operation": "read",
        "path": "/src/a",
        "other": None,
        "allowed": True,
        "errno": None,
        "rule": "/src/** (policy.yaml:7)",
        "reason": "allowed by the rule",
    }


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["acne", "/a", "read"], "the policy has no tenant 'acne'\n  hint: did you mean 'acme'?"),
        (["zzz", "/a", "read"], "the policy has no tenant 'zzz'\n  hint: there are acme"),
        (["acme", "/a", "reed"], "no operation is called 'reed'"),
        (["acme", "/a", "rename"], "'rename' has two paths"),
        (["acme", "/a/../b", "read"], "'/a/../b' is no path that reaches the gate"),
        (["acme", "/a//b", "read"], "'/a//b' is no path"),
        (["acme", "/a", "rename", "./b"], "'./b' is no path"),
    ],
)
def test_questions_that_make_no_sense(arguments: list[str], told: str, etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(etc, *arguments) == 2
    assert capsys.readouterr().err.startswith(f"fuse-gatectl: {told}")


def test_no_tenant_at_all(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (etc / "policy.yaml").write_text("tenants: {}\n")
    assert explain(etc, "acme", "/a", "read") == 2
    assert "there are none" in capsys.readouterr().err


def test_a_policy_at_fault(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (etc / "policy.yaml").write_text("tenants: {acme: {users: [no-such-user]}}\n")
    assert explain(etc, "acme", "/a", "read") == 4
    assert "no user 'no-such-user'" in capsys.readouterr().err
    (etc / "policy.yaml").write_text("tenant: {}\n")
    assert explain(etc, "acme", "/a", "read") == 4
    assert "did you mean 'tenants'?" in capsys.readouterr().err
