"""docs/production/scaling.md: the file is the one that is tested, and the limits are those that there are."""

import re
from pathlib import Path
from typing import Any

import pytest

from fuse_gated.config.settings import Settings
from fuse_gated.gate.tenant import Exports

TOP = Path(__file__).parents[2]
PAGE = "docs/production/scaling.md"


@pytest.fixture(name="scaling")
def _scaling(configuration: Any) -> Any:
    return type(configuration)(TOP / PAGE)


def test_the_file_is_shown_as_it_is(scaling: Any) -> None:
    text = (TOP / "docs/examples/reverse-proxies/haproxy-several.cfg").read_text("utf-8")
    assert [block.body for block in scaling.blocks if block.info == "haproxy"] == [text]


def test_the_limits_are_those_there_are(scaling: Any, tables_of: Any) -> None:
    (table,) = tables_of(scaling.section("## Limits to raise"))
    limits = {row[0]: row[2] for row in table if row[0]}
    assert limits["sessions"] == str(Settings().max_sessions)
    assert limits["sessions of a tenant"] == str(Exports().max_sessions)
    admission = Settings().admission
    assert limits["who logs in at once"] == f"{admission.startups}, {admission.per_address}"

    def of(unit: str, directive: str) -> str:
        text = (TOP / "systemd" / f"{unit}.service").read_text("utf-8")
        return re.findall(rf"^{directive}=(.*)$", text, re.MULTILINE)[0]

    assert limits["descriptors"] == f"{of('fuse-gated', 'LimitNOFILE')}, {of('fuse-gated-mountd', 'LimitNOFILE')}"
    assert limits["what systemd keeps"] == of("fuse-gated-mountd", "FileDescriptorStoreMax")
    assert limits["processes and threads"] == of("fuse-gated", "TasksMax")


def test_they_are_enough_for_all_sessions() -> None:
    """By what one session takes (tests/bench holds the page to it): of the daemon, of the keeper, of who keeps copies."""
    most = Settings().max_sessions
    units = {name: (TOP / "systemd" / f"{name}.service").read_text("utf-8") for name in ("fuse-gated", "fuse-gated-mountd")}

    def number(unit: str, directive: str) -> int:
        return int(re.findall(rf"^{directive}=(\d+)$", units[unit], re.MULTILINE)[0])

    assert number("fuse-gated", "LimitNOFILE") > 5 * most
    assert number("fuse-gated-mountd", "LimitNOFILE") > 2 * most
    assert number("fuse-gated-mountd", "FileDescriptorStoreMax") > 3 * most
    # Two threads each, and as many again while all clients come back.
    assert number("fuse-gated", "TasksMax") > 4 * most
