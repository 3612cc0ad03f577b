"""The queries of the pages for operators, asked of a real journal with records of a unit called fuse-gated.service."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.journald import Journald, running_journald

TOP = Path(__file__).parents[2]
PAGES = ("docs/production/monitoring.md", "docs/man/fuse-gated-journal.7.md")
SESSION, EXAMPLE = "4ac0c5a2e5dd7e3b", "9f86d081884c7d65"
PROGRAM = """
import sys
from fuse_gated.edge.journal import JournalSocket
from fuse_gated.gate.audit import Chain, Record

journal = JournalSocket.connect(sys.argv[1])
chain = Chain("acme", sys.argv[2], "project")
for record in (
    Record(kind="session-opened", detail="from 192.0.2.7"),
    Record(kind="operation", operation="open", path=b"src/main.c", decision="allowed", uid=1000, pid=1),
    Record(kind="operation", operation="unlink", path=b"odd\\n\\xff name", decision="allowed", uid=1000, pid=1),
    Record(kind="refused", operation="create", path=b".git/hooks/x", decision="denied", rule="r", errno="EACCES", uid=1000),
    Record(kind="audit-gap", count=3),
    Record(kind="session-closed"),
):
    assert journal.write(chain.seal(record))
assert journal.write(Chain("", "0123456789abcdef", "").seal(Record(kind="login-refused", detail="no token")))
"""


def queries() -> list[str]:
    """Every journalctl command that a page shows, without its comment."""
    found = []
    for page in PAGES:
        text = (TOP / page).read_text("utf-8")
        found += re.findall(r"^[#$] (journalctl [^#\n]*)", text, re.MULTILINE)
        found += re.findall(r"`(journalctl MESSAGE_ID=\w+)`", text)
    return sorted({query.strip() for query in found})


@pytest.fixture(scope="module")
def journald() -> Iterator[Journald]:
    with running_journald() as journald:
        journald.run_in_unit("fuse-gated.service", PROGRAM, journald.socket, SESSION)
        yield journald


def asked(journald: Journald, query: str) -> list[dict[str, Any]]:
    """The entries that it finds. What follows the journal, and how it is shown, is left out."""
    words = [word for word in shlex.split(query) if word not in ("-f", "-x", "--catalog", "--all", "-o", "json")]
    words = [word.replace(EXAMPLE, SESSION) for word in words]
    return [json.loads(line) for line in journald.command(*words, "--output=json", "--all").splitlines()]


def test_there_are_queries() -> None:
    assert len(queries()) > 8


@pytest.mark.parametrize("query", queries())
def test_a_query_finds_what_is_meant(query: str, journald: Journald) -> None:
    found = asked(journald, query)
    assert found
    wanted = dict(re.findall(r"\b(FUSE_GATED_[A-Z_]+|MESSAGE_ID)=(\S+)", query))
    for entry in found:
        assert entry["_SYSTEMD_UNIT"] == "fuse-gated.service"
        for name, value in wanted.items():
            assert entry[name] == value.replace(EXAMPLE, SESSION)


def test_a_path_is_kept_byte_by_byte(journald: Journald) -> None:
    (entry,) = asked(journald, "journalctl -u fuse-gated.service FUSE_GATED_OPERATION=unlink")
    assert bytes(entry["FUSE_GATED_PATH"]) == b"/odd\n\xff name"


def test_all_of_a_session(journald: Journald) -> None:
    assert len(asked(journald, f"journalctl -u fuse-gated.service FUSE_GATED_SESSION={SESSION}")) == 6
