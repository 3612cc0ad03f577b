import datetime

from fuse_gated.config.advice import warnings
from fuse_gated.gate.tenant import Tenant, Token
from fuse_gated.gate.verdict import ALL, DELETE, EXECUTE, READ, WRITE, Rule

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
        "policy.yaml:7: the rule for /a never decides: policy.yaml:5, policy.yaml:6 do before it",
        "policy.yaml:9: the rule for /b never decides: policy.yaml:8 does before it",
        "policy.yaml:11: the rule for /c never decides: policy.yaml:10 does before it",
        "policy.yaml:15: the rule for /** never decides: policy.yaml:14 does before it",
    ]


def test_rules_that_come_after_a_wider_one() -> None:
    found = told(
        rules=rules(
            ("/**", {"allow": READ | WRITE}),
            ("/ro/**", {"deny": WRITE}),
            ("/ro/x", {"deny": WRITE | DELETE}),
            ("/ro/**/*.key", {"hide": True}),
            ("/lib/**", {"deny": DELETE}),
            ("/lib/*", {"deny": DELETE}),
            ("/lib/a", {"allow": DELETE, "deny": READ}),
        )
    )
    assert found == [
        "policy.yaml:6: the rule for /ro/** never decides: policy.yaml:5 does before it",
        "policy.yaml:8: the rule for /ro/**/*.key never decides: policy.yaml:5 does before it",
        "policy.yaml:10: the rule for /lib/* never decides: policy.yaml:9 does before it",
        "policy.yaml:11: the rule for /lib/a never decides: policy.yaml:5, policy.yaml:9 do before it",
    ]


def test_what_is_hidden_is_beyond_all_later_rules() -> None:
    found = told(rules=rules(("/x/**", {"hide": True}), ("/x/y", {"allow": READ}), ("/x*", {"allow": READ})))
    assert found == ["policy.yaml:6: the rule for /x/y never decides: policy.yaml:5 does before it"]


def rules(*pairs: tuple[str, dict[str, int | bool]]) -> tuple[Rule, ...]:
    return tuple(Rule(path, place=f"policy.yaml:{line}", **what) for line, (path, what) in enumerate(pairs, 5))


def restricting(*pairs: tuple[str, dict[str, int | bool]]) -> list[str]:
    return [warning.partition(" (")[0] for warning in told(rules=rules(*pairs)) if "restricts nothing" in warning]


def test_a_rule_that_restricts_nothing() -> None:
    assert told(rules=rules(("/src/**", {"allow": READ}), ("/**", {"allow": READ | WRITE | DELETE}))) == [
        "policy.yaml:5: the rule for /src/** restricts nothing: policy.yaml:6 allows write, delete there "
        "(what is not to be allowed must be denied: deny: [write, delete])"
    ]


def test_each_later_rule_that_allows_more_is_named() -> None:
    found = restricting(("/a", {"allow": READ}), ("/a/**", {"allow": WRITE}), ("/*", {"deny": DELETE}), ("/**", {"allow": ALL}))
    assert found == [
        "policy.yaml:5: the rule for /a restricts nothing: policy.yaml:6 allows write there",
        "policy.yaml:5: the rule for /a restricts nothing: policy.yaml:8 allows execute there",
        "policy.yaml:6: the rule for /a/** restricts nothing: policy.yaml:8 allows read, execute there",
    ]


def test_rules_that_change_something_are_right() -> None:
    everything = ("/**", {"allow": ALL})
    allows = ("/src/**", {"allow": READ | WRITE})
    assert restricting(allows, ("/**", {"allow": READ})) == []  # it allows what is not allowed otherwise
    assert restricting(("/src/**", {"allow": READ, "deny": WRITE}), everything) == []
    assert restricting(("/src/**", {"deny": WRITE}), everything) == []
    assert restricting(("/src/**", {"hide": True}), everything) == []
    assert restricting(allows, ("/src/x", {"deny": READ}), everything) == []  # it excepts itself from the second
    assert restricting(allows, ("/**/*.key", {"hide": True}), everything) == []
    some = ("/*/*", {"allow": READ, "deny": DELETE})
    assert restricting(allows, some, everything) == []  # which of the two allows depends on the path
    assert restricting(("/src/**", {"allow": READ})) == []
    assert restricting(("/src/**", {"allow": READ}), ("/**", {"allow": READ})) == []  # superfluous, and no misunderstanding
    assert restricting(("/src/**", {"allow": READ}), ("/lib/**", {"allow": ALL})) == []
    assert restricting(("/src/*", {"allow": READ}), ("/src/*", {"allow": READ | EXECUTE})) == [
        "policy.yaml:5: the rule for /src/* restricts nothing: policy.yaml:6 allows execute there"
    ]


def test_rules_about_other_paths_are_passed_over() -> None:
    narrow, wide = ("/src/**", {"allow": READ}), ("/**", {"allow": READ | WRITE})
    for other in ("/lib", "/lib/**", "/lib/*/x", "/", "/srcs/**"):
        assert len(restricting(narrow, (other, {"deny": READ | WRITE}), wide)) == 1
    for other in ("/src", "/*", "/*/x", "/**", "/src/a/b"):
        assert restricting(narrow, (other, {"deny": READ | WRITE}), wide) == []
    assert len(restricting(("/src/a", {"allow": READ}), ("/src/b", {"deny": READ}), ("/src/*", {"allow": READ | WRITE}))) == 1
    assert restricting(("/src/*", {"allow": READ}), ("/src/b", {"deny": READ}), ("/src/**", {"allow": READ | WRITE})) == []
