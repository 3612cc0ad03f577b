"""The files in etc/ are conffiles: accepted as they are, and an example once the '#' before it is taken away."""

import datetime
import re
from pathlib import Path

import msgspec
import pytest

from fuse_gated.config.advice import warnings
from fuse_gated.config.policy_file import parse_policy
from fuse_gated.config.settings import Settings
from fuse_gated.config.settings_file import parse_settings
from fuse_gated.gate.tenant import Exports, Limits, Outage

ETC = Path(__file__).parents[2] / "etc"


def uncommented(name: str) -> bytes:
    """The file with its example lines: those with a '#' and no blank behind it."""
    lines = (ETC / name).read_text().splitlines()
    return "\n".join(re.sub(r"^( *)#(?=\S)", r"\1", line) for line in lines).encode()


@pytest.mark.parametrize("name", ["fuse-gated.yaml", "policy.yaml"])
def test_no_line_is_too_long_and_nothing_counts_as_it_stands(name: str) -> None:
    for line in (ETC / name).read_text().splitlines():
        assert len(line) <= 130
        assert not line or line.lstrip().startswith("#")


def test_the_settings_as_they_are() -> None:
    assert parse_settings((ETC / "fuse-gated.yaml").read_bytes(), "fuse-gated.yaml") == Settings()


def test_the_settings_in_the_example_are_the_defaults_and_all_there_are() -> None:
    text = uncommented("fuse-gated.yaml")
    settings = msgspec.structs.asdict(parse_settings(text, "fuse-gated.yaml"))
    defaults = msgspec.structs.asdict(Settings())
    assert all(re.search(rf"^{name}:", text.decode(), re.MULTILINE) for name in defaults)
    differing = {name for name, value in settings.items() if value != defaults[name]}
    assert differing == {"tls", "proxies", "audit", "origins"}  # these have no default to show
    assert settings["audit"].to == Settings().audit.to


def test_the_policy_as_it_is() -> None:
    assert parse_policy([("policy.yaml", (ETC / "policy.yaml").read_bytes())]) == ()


def test_the_policy_in_the_example() -> None:
    (tenant,) = parse_policy([("policy.yaml", uncommented("policy.yaml"))])
    assert tenant.exports == Exports()
    assert tenant.outage == Outage()
    assert tenant.limits.on_excess == Limits().on_excess
    assert tenant.limits.scope == Limits().scope
    shown = uncommented("policy.yaml").decode()
    assert all(re.search(rf"^ +{name}:", shown, re.MULTILINE) for name in set(tenant.__struct_fields__) - {"name", "place"})
    assert warnings([tenant], datetime.date(2026, 1, 1)) == ()
