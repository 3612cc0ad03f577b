"""Tables of policies, operations and verdicts: data/*.yaml. A line reads

    OPERATION PATH [PATH] [directory] [replaces] [flags=N] [mask=N] -> allowed | ERRNO [by PATTERN]

with shell quoting, and %xx for a byte of a path. Where no pattern is named, no rule may have decided.
"""

import shlex
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest
import yaml

from fuse_gated.gate.gate import OPERATIONS, Gate
from fuse_gated.gate.tenant import Identity, Tenant
from fuse_gated.gate.verdict import PERMISSIONS, Rule

TABLES = {file.stem: yaml.safe_load(file.read_text("utf-8")) for file in sorted((Path(__file__).parent / "data").glob("*.yaml"))}
CASES = [(name, case) for name, table in TABLES.items() for case in table["cases"]]
LISTINGS = [(name, directory) for name, table in TABLES.items() for directory in table.get("listings", {})]


def bits(names: list[str]) -> int:
    return sum(PERMISSIONS[name] for name in names)


def gate_of(name: str) -> Gate:
    table = TABLES[name]
    rules = tuple(
        Rule(
            rule["path"], bits(rule.get("allow", [])), bits(rule.get("deny", [])), rule.get("hide", False), f"{name}.yaml:{line}"
        )
        for line, rule in enumerate(table["rules"], 1)
    )
    identity = Identity(owner_uid=1000, owner_gid=1000)
    return Gate(Tenant(name=name, rules=rules), identity, read_only=table.get("read only", False))


def path_of(text: str) -> bytes:
    assert text.startswith("/")
    return unquote_to_bytes(text)[1:]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_verdict(name: str, case: str) -> None:
    question, _, answer = case.partition(" -> ")
    operation, *words = shlex.split(question)
    paths = [path_of(word) for word in words if word.startswith("/")]
    numbers = {key: int(value) for key, _, value in (word.partition("=") for word in words if "=" in word and word[0] != "/")}
    verdict = gate_of(name).judge(operation, *paths, directory="directory" in words, replaces="replaces" in words, **numbers)
    errno, _, pattern = answer.partition(" by ")
    assert verdict.errno == (None if errno == "allowed" else errno), verdict
    assert verdict.allowed == (errno == "allowed")
    if pattern:
        assert verdict.rule.startswith(f"{pattern} ({name}.yaml:")
        assert TABLES[name]["rules"][int(verdict.rule.rpartition(":")[2][:-1]) - 1]["path"] == pattern
    else:
        assert verdict.rule == ""
    assert verdict.reason or verdict.allowed


@pytest.mark.parametrize(("name", "directory"), LISTINGS)
def test_listing(name: str, directory: str) -> None:
    gate, listing = gate_of(name), TABLES[name]["listings"][directory]
    entries = listing["shown"] + listing["not shown"]
    assert [entry for entry in entries if gate.entry_is_listed(path_of(directory), entry.encode())] == listing["shown"]


def test_every_operation_is_in_a_table() -> None:
    missing = set(OPERATIONS) - {case.split()[0] for _name, case in CASES}
    assert missing == {"listxattr", "lseek", "fallocate", "setattr", "chown", "utimens"}
