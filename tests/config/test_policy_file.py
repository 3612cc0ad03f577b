import datetime

import pytest

from fuse_gated.config.policy_file import parse_policy
from fuse_gated.errors import ConfigurationError
from fuse_gated.gate.policy import validate_pattern
from fuse_gated.gate.tenant import Cache, Exports, Limits, Local, Outage, Tenant, Token
from fuse_gated.gate.verdict import EXECUTE, READ, WRITE, Rule

A = "a" * 64
B = "b" * 64

DESIGN = f"""\
tenants:
  acme:
    tokens: [{{sha256: "{A}", expires: 2027-01-31, note: "ci"}}, {{sha256: {B.upper()}}}]
    users: [acme-build]
    groups: [acme]
    ownership: mapped
    exports: {{name: "*", max_sessions: 4}}
    rules:
      - {{path: "/.env*", hide: true}}
      - {{path: "/.git/hooks/**", deny: [write, execute]}}
      - {{path: "/src/**", allow: [read, write]}}
      - {{path: "/**", allow: [read]}}
    symlinks: inside
    limits:
      operations: {{read: 2000/s, write: 500/s, "*": 5000/s}}
      bytes: {{read: 200MiB/s, write: 50MiB/s}}
      on_excess: delay
      scope: tenant
      open_files: 1024
      file_size: 4GiB
    outage: {{mode: wait, grace: 60s}}
    cache: {{mode: ttl, ttl: 5s, size: 64MiB}}
    audit: writes
"""


def faults_of(*files: tuple[str, str]) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as raised:
        parse_policy([(name, text.encode()) for name, text in files])
    return raised.value.faults


def tenant_faults(*lines: str) -> list[str]:
    """The faults of a tenant with these keys, without the file's name."""
    text = "tenants:\n  acme:\n" + "".join(f"    {line}\n" for line in lines)
    return [fault.removeprefix("policy.yaml:") for fault in faults_of(("policy.yaml", text))]


def test_the_policy_of_the_design() -> None:
    assert parse_policy([("policy.yaml", DESIGN.encode())]) == (
        Tenant(
            name="acme",
            tokens=(Token(A, datetime.date(2027, 1, 31), "ci"), Token(B)),
            users=("acme-build",),
            groups=("acme",),
            ownership="mapped",
            exports=Exports("*", 4),
            rules=(
                Rule("/.env*", hide=True, place="policy.yaml:9"),
                Rule("/.git/hooks/**", deny=WRITE | EXECUTE, place="policy.yaml:10"),
                Rule("/src/**", allow=READ | WRITE, place="policy.yaml:11"),
                Rule("/**", allow=READ, place="policy.yaml:12"),
            ),
            symlinks="inside",
            limits=Limits(
                operations={"read": 2000.0, "write": 500.0, "*": 5000.0},
                bytes={"read": 200.0 * 2**20, "write": 50.0 * 2**20},
                on_excess="delay",
                scope="tenant",
                open_files=1024,
                file_size=4 * 2**30,
            ),
            outage=Outage("wait", 60.0),
            cache=Cache("ttl", 5.0, 64 * 2**20),
            audit="writes",
            place="policy.yaml:2",
        ),
    )


def test_a_tenant_has_defaults_for_everything() -> None:
    assert parse_policy([("policy.yaml", b"tenants: {acme: {}}")]) == (Tenant(name="acme", place="policy.yaml:1"),)


def test_a_copy_in_the_place_of_a_mount() -> None:
    (tenant,) = parse_policy([("policy.yaml", b"tenants: {acme: {local: {size: 1GiB}}}")])
    assert tenant.local == Local(2**30, 100_000)
    (tenant,) = parse_policy([("policy.yaml", b"tenants: {acme: {local: {size: 5, files: 7}, ownership: mapped}}")])
    assert tenant.local == Local(5, 7)


def test_tenants_of_all_files_in_their_order() -> None:
    files = [
        ("policy.yaml", b""),
        ("policy.d/a.yaml", b"tenants: {zeta: {}, acme: {}}"),
        ("policy.d/b.yaml", b"tenants: {beta: {}}"),
    ]
    assert [(tenant.name, tenant.place) for tenant in parse_policy(files)] == [
        ("zeta", "policy.d/a.yaml:1"),
        ("acme", "policy.d/a.yaml:1"),
        ("beta", "policy.d/b.yaml:1"),
    ]
    assert parse_policy([("policy.yaml", b"# nobody yet\n")]) == ()
    assert parse_policy([]) == ()


def test_a_policy_with_twelve_different_faults_at_once() -> None:
    policy = f"""\
tenant: {{}}
tenants:
  Acme:
    tokens:
      - {{sha256: "123", expires: 2027-13-01}}
    user: [build]
    ownership: maped
    rules:
      - {{path: "src/**", allow: [read]}}
      - {{path: "/**", allow: [reed]}}
      - {{path: "/doc/**"}}
      - {{path: "/.env*", hide: true, allow: [read]}}
    limits: {{open_files: "many", file_size: 4Gb}}
  beta:
    symlinks: inside
    symlinks: deny
    tokens: {A}
"""
    more = "tenants:\n  beta: {audit: 7}\n"
    assert faults_of(("policy.yaml", policy), ("policy.d/more.yaml", more)) == (
        "policy.yaml:1:1: unknown key 'tenant' in the policy (did you mean 'tenants'?)",
        "policy.yaml:3:3: 'Acme' cannot be a tenant's name "
        "(small letters, digits, '.', '_' and '-', at most 64, the first a letter or a digit)",
        "policy.yaml:5:18: '123' is not a SHA-256: 64 hexadecimal digits ('fuse-gatectl token new TENANT' prints one)",
        "policy.yaml:5:34: '2027-13-01' is no day of the calendar",
        "policy.yaml:6:5: unknown key 'user' in tenant 'Acme' (did you mean 'users'?)",
        "policy.yaml:7:16: 'maped' is not one of mapped, passthrough (did you mean 'mapped'?)",
        f"policy.yaml:9:16: bad pattern 'src/**': {validate_pattern('src/**')}",
        "policy.yaml:10:31: 'reed' is not one of read, write, execute, delete (did you mean 'read'?)",
        "policy.yaml:11:9: the rule decides nothing (give it allow: [...], deny: [...] or hide: true)",
        "policy.yaml:12:9: the rule both hides and allows (what is hidden does not exist for anyone: keep one of the two)",
        "policy.yaml:13:26: expected a whole number, found the text 'many'",
        "policy.yaml:13:45: '4Gb' is not a size (such as 1024, 512KiB, 50MiB or 4GiB; also kB, MB, GB, TiB and B)",
        "policy.yaml:16:5: 'symlinks' is given a second time in tenant 'beta' (the first is at policy.yaml:15)",
        f"policy.yaml:17:13: expected a list of tokens, found the text '{A[:60]}…' (write it in brackets: [one, another])",
        "policy.d/more.yaml:2:3: 'beta' is given a second time in tenants (the first is at policy.yaml:14)",
        "policy.d/more.yaml:2:17: '7' is not one of denials, writes, opens, everything",
    )


@pytest.mark.parametrize(
    ("line", "faults"),
    [
        ("rules: [{allow: [read]}]", ["3:13: a rule lacks 'path'"]),
        (
            "rules: [{path: /a, hide: false}]",
            ["3:13: the rule decides nothing (give it allow: [...], deny: [...] or hide: true)"],
        ),
        ("rules: [{path: /a, hide: 1}]", ["3:30: expected true or false, found the number '1'"]),
        ("rules: [{path: /a, allow: []}]", ["3:31: the list of permissions is empty"]),
        (
            "rules: [{path: /a, allow: [read, write], deny: [delete, write]}]",
            ["3:13: the rule both allows and denies write (keep it in one of the two lists)"],
        ),
        (
            "rules: [{path: /a, allow: [read, write], deny: [write, read]}]",
            ["3:13: the rule both allows and denies read and write (keep it in one of the two lists)"],
        ),
        (
            "rules: [{path: /a, allow: read}]",
            ["3:31: expected a list of permissions, found the text 'read' (write it in brackets: [one, another])"],
        ),
        ("rules: [{path: /a, allow: [read, read]}]", ["3:38: 'read' is in the list of permissions already"]),
        ("rules: [/a]", ["3:13: expected a mapping for a rule, found the text '/a'"]),
        ("users: [1000]", ["3:13: expected text, found the number '1000' (put it in quotes if it is meant)"]),
        (
            "exports: {name: Docs, max_sessions: 0}",
            [
                "3:21: 'Docs' matches no export's name (a pattern with * and ? for names of small letters, digits, '.', '_' and "
                "'-', at most 64, the first a letter or a digit)",
                "3:41: 0 is not within 1 and 100000",
            ],
        ),
        ("limits: {operations: {reads: 5/s}}", ["3:27: unknown key 'reads' in limits.operations (did you mean 'read'?)"]),
        (
            "limits: {operations: {read: 5MiB/s}, bytes: {write: 5/day}}",
            [
                "3:33: '5MiB/s' is not a rate (such as 2000/s or 60/min; a plain number is per second)",
                "3:57: '5/day' is not a rate of bytes (such as 200MiB/s or 1GiB/min; a plain number is bytes per second)",
            ],
        ),
        ("limits: {operations: {read: 0}}", ["3:33: 0 is not within 0.001 and 1000000000"]),
        (
            "outage: {mode: hope, grace: -1s}",
            [
                "3:20: 'hope' is not one of wait, fail, cached",
                "3:33: '-1s' is not a duration (such as 500ms, 10s, 2m or 1h; a plain number is seconds)",
            ],
        ),
        (
            "cache: {mode: none, ttl: 0, size: 1KiB}",
            [
                "3:19: 'none' is not one of watched, ttl, strict",
                "3:30: 0 is not within 0.001 and 86400",
                "3:39: 1024 is not within 1048576 and 68719476736",
            ],
        ),
        (
            "local: {files: 0}",
            ["3:12: local lacks 'size'", "3:20: 0 is not within 1 and 10000000"],
        ),
        ("local: {size: 0}", ["3:19: 0 is not within 1 and 549755813888"]),
        (
            "local: {size: 1GiB}\n    ownership: passthrough",
            [
                "2:3: tenant 'acme' has local and ownership: passthrough, and a copy knows no owners "
                "(remove local, or let everything belong to the tenant's first user (ownership: mapped))"
            ],
        ),
        ("tokens: [{note: ci}]", ["3:14: a token lacks 'sha256'"]),
        ("tokens: [{sha256: " + A + ", expires: soon}]", ["3:98: 'soon' is not a date (such as 2027-01-31)"]),
        (
            "tokens: [{sha256: " + A + "}, {sha256: " + A.upper() + "}]",
            ["3:90: this token is given a second time (the first is at policy.yaml:3)"],
        ),
        ("rules:", ["3:11: expected a list of rules, found nothing (leave the key out to have its default)"]),
    ],
)
def test_faults_of_a_tenant(line: str, faults: list[str]) -> None:
    assert tenant_faults(line) == faults


def test_a_token_of_two_tenants_is_told_with_both_places() -> None:
    one = f"tenants:\n  acme: {{tokens: [{{sha256: {A}}}]}}\n"
    other = f"tenants:\n  beta: {{tokens: [{{sha256: {A}}}]}}\n"
    assert faults_of(("policy.yaml", one), ("policy.d/b.yaml", other)) == (
        "policy.d/b.yaml:2:19: this token is given a second time (the first is at policy.yaml:2)",
    )


def test_a_digest_of_digits_only_is_one() -> None:
    digits = "1" * 64
    (tenant,) = parse_policy([("policy.yaml", f"tenants: {{acme: {{tokens: [{{sha256: {digits}}}]}}}}".encode())])
    assert tenant.tokens == (Token(digits),)


def test_a_policy_needs_its_tenants() -> None:
    assert faults_of(("policy.yaml", "{}")) == ("policy.yaml:1:1: the policy lacks 'tenants'",)
    assert faults_of(("policy.yaml", "tenants: [acme]")) == ("policy.yaml:1:10: expected a mapping for tenants, found a list",)
    assert faults_of(("policy.yaml", "tenants:\n  acme:\n")) == (
        "policy.yaml:2:8: expected a mapping for tenant 'acme', found nothing (leave the key out to have its default)",
    )


def test_a_file_that_is_not_yaml_does_not_hide_the_faults_of_others() -> None:
    assert faults_of(("policy.yaml", "tenants: ]"), ("policy.d/x.yaml", "x: 1\ntenants: {}")) == (
        "policy.yaml:1:10: not YAML: expected the node content, but found ']' "
        "(look at the indentation, and put a value that begins with a bracket in quotes)",
        "policy.d/x.yaml:1:1: unknown key 'x' in the policy (known are tenants)",
    )
