import datetime

from fuse_gated.config.advice import warnings
from fuse_gated.gate.tenant import Tenant, Token
from fuse_gated.gate.verdict import READ, WRITE, Rule

TODAY = datetime.date(2026, 6, 15)
SOUND = Tenant(
    name="acme",
    tokens=(Token("a" * 64, TODAY),),
    users=("build",),
    rules=(Rule("/**", allow=READ, place="policy.yaml:5"),),
    place="policy.yaml:2",
)


def told(**changes: object) -> list[str]:
    values = {name: getattr(SOUND, name) for name in Tenant.__struct_fields__} | changes
    prefix = "tenant 'acme': "
    warned = warnings([Tenant(**values)], TODAY)
    assert all(prefix in warning for warning in warned)
    return [warning.replace(prefix, "") for warning in warned]


def test_nothing_is_said_of_a_sound_policy() -> None:
    assert told() == []
    assert told(users=(), groups=("staff",)) == []


def test_no_tenant() -> None:
    assert warnings([], TODAY) == ("no tenant is defined: nobody can log in",)


def test_tokens() -> None:
    yesterday = TODAY - datetime.timedelta(days=1)
    none = "policy.yaml:2: no token is valid, so nobody can log in (fuse-gatectl token new)"
    assert told(tokens=()) == [none]
    assert told(tokens=(Token("a" * 64), Token("b" * 64, yesterday, "ci"))) == [
        "policy.yaml:2: the token 'ci' expired on 2026-06-14"
    ]
    assert told(tokens=(Token("b" * 64, yesterday),)) == ["policy.yaml:2: the token bbbbbbbb… expired on 2026-06-14", none]


def test_who_may_enter() -> None:
    assert told(users=("*",)) == ["policy.yaml:2: users '*' lets every user of this server into its mounts"]
    assert told(users=()) == ["policy.yaml:2: neither users nor groups are named, so nobody on this server can enter its mounts"]


def test_nothing_is_allowed() -> None:
    assert told(rules=()) == ["policy.yaml:2: no rule allows anything"]
    assert told(rules=(Rule("/a", hide=True, place="policy.yaml:5"),)) == ["policy.yaml:2: no rule allows anything"]


def test_rules_that_never_decide() -> None:
    rules = (
        Rule("/a", allow=READ, place="policy.yaml:5"),
        Rule("/a", deny=WRITE, place="policy.yaml:6"),
        Rule("/a", allow=WRITE, deny=READ, place="policy.yaml:7"),
        Rule("/b", hide=True, place="policy.yaml:8"),
        Rule("/b", allow=READ, place="policy.yaml:9"),
        Rule("/c", deny=READ, place="policy.yaml:10"),
        Rule("/c", hide=True, place="policy.yaml:11"),
        Rule("/c", deny=WRITE, place="policy.yaml:12"),
        Rule("/**", hide=True, place="policy.yaml:13"),
        Rule("/**", allow=READ, place="policy.yaml:14"),
        Rule("/**", hide=True, place="policy.yaml:15"),
    )
    assert told(rules=rules) == [
        "policy.yaml:7: the rule for /a never decides: policy.yaml:5 does before it",
        "policy.yaml:9: the rule for /b never decides: policy.yaml:8 does before it",
        "policy.yaml:11: the rule for /c never decides: policy.yaml:10 does before it",
        "policy.yaml:15: the rule for /** never decides: policy.yaml:13 does before it",
    ]
