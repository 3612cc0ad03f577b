import datetime
import hashlib
import json
import re
from pathlib import Path

import pytest

from fuse_gated.commands.fuse_gatectl import main
from fuse_gated.commands.token import policy_line
from fuse_gated.config.policy_file import parse_policy
from fuse_gated.gate.tenant import Token

DAY = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days=400)


def accepted(line: str) -> Token:
    """The token that a policy with this line has."""
    (tenant,) = parse_policy([("policy.yaml", f"tenants:\n  acme:\n    tokens:\n      {line}\n".encode())])
    (token,) = tenant.tokens
    return token


def test_a_token_and_the_line_for_the_policy(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--etc", str(etc), "token", "new", "acme", "--expires", str(DAY), "--note", 'é "ci": {x}']) == 0
    out, err = capsys.readouterr()
    (token,) = re.findall(r"^fg_[A-Za-z0-9_-]{43}$", out, re.MULTILINE)
    (line,) = re.findall(r"^ +(- \{.*\})$", out, re.MULTILINE)
    assert accepted(line) == Token(hashlib.sha256(token.encode()).hexdigest(), DAY, 'é "ci": {x}')
    assert err == ""


def test_no_two_tokens_are_alike(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = set()
    for _ in range(3):
        assert main(["--etc", str(etc), "token", "new", "acme", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert accepted(told["policy"]) == Token(hashlib.sha256(told["token"].encode()).hexdigest())
        assert told["expires"] is None
        tokens.add(told["token"])
    assert len(tokens) == 3


def test_json(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--etc", str(etc), "token", "new", "beta", "--expires", str(DAY), "--note", "ci", "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert set(told) == {"tenant", "token", "sha256", "expires", "note", "policy"}
    assert (told["tenant"], told["expires"], told["note"]) == ("beta", str(DAY), "ci")
    assert err == ""


def test_a_tenant_that_the_policy_does_not_know_yet(etc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--etc", str(etc), "token", "new", "beta"]) == 0
    assert capsys.readouterr().err == f"fuse-gatectl: the policy in {etc} has no tenant 'beta' yet\n"
    assert main(["--etc", str(etc / "nowhere"), "token", "new", "beta"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["Acme"], "'Acme' cannot be a tenant's name"),
        (["acme", "--expires", "tomorrow"], "'tomorrow' is not a date"),
        (["acme", "--expires", "2031-02-30"], "'2031-02-30' is not a date"),
        (["acme", "--expires", "20310101"], "'20310101' is not a date"),
        (["acme", "--expires", "2020-01-01"], "2020-01-01 is over"),
        (["acme", "--note", "a\nb"], "the note holds control characters"),
    ],
)
def test_what_makes_no_sense(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "new", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"fuse-gatectl: {told}")


def test_the_line_leaves_out_what_was_not_given() -> None:
    assert policy_line("ab", None, "") == '- {sha256: "ab"}'
    assert policy_line("ab", datetime.date(2027, 1, 31), "ci") == '- {sha256: "ab", expires: 2027-01-31, note: "ci"}'
