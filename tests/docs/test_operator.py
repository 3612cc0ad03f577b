"""The pages for operators name what there is: units, fields, messages, files; and their blocks are of known kinds."""

import ast
import re
from pathlib import Path
from typing import Any

from fuse_gated.gate.audit import KINDS, SEALED

TOP = Path(__file__).parents[2]
RUN = {"shell run", "shell system", "yaml", "python", "hex client", "hex server", "nginx", "haproxy"}
"""Blocks that a test takes by their word: what is run, parsed, or compared with what is run."""
EXAMPLES = {"console", "shell example", "http", "ini", "dockerfile", "caddy", "synopsis", ""}
"""Blocks that show something. What they say of our own commands is compared with the parsers (test_docs.py)."""


def test_every_block_is_run_or_marked_as_an_example(page: Any) -> None:
    assert {block.info for block in page.blocks} <= RUN | EXAMPLES


def test_units_are_there(page: Any) -> None:
    named = set(re.findall(r"\bfuse-gate[a-z-]*@?\.(?:service|socket|slice)\b", page.text))
    assert named <= {path.name for path in (TOP / "systemd").iterdir()}


def test_fields_and_kinds_are_there(page: Any) -> None:
    fields = {*SEALED, "FUSE_GATED_CHAIN"}
    assert set(re.findall(r"\bFUSE_GATED_[A-Z_]*[A-Z]\b", page.text)) <= fields
    assert set(re.findall(r"\bFUSE_GATED_KIND=([a-z-]+)", page.text)) <= set(KINDS)
    ids = {message_id for message_id, _, _ in KINDS.values()}
    assert set(re.findall(r"\bMESSAGE_ID=([0-9a-f]+)", page.text)) <= ids


def test_files_of_the_project_are_there(page: Any) -> None:
    """What stands in backticks with a folder of the checkout in front."""
    for path in re.findall(r"`((?:tests|packaging|systemd|etc|fuse_gated|docs)/[\w./@-]+)`", page.prose):
        assert (TOP / path).exists(), path


def messages() -> str:
    """Every text in the code, with … where a value is put in."""
    found = []
    for path in (TOP / "fuse_gated").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.append("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
    return "\n".join(found)


def test_what_troubleshooting_quotes_is_said(tables_of: Any) -> None:
    text = (TOP / "docs/fuse/troubleshooting.md").read_text("utf-8")
    known = messages()
    quoted = [
        message
        for heading in ("## The client does not connect", "## The server does not start")
        for row in tables_of(text.partition(heading)[2].partition("\n## ")[0])[0]
        for message in re.findall(r"`([^`]+)`", row[0])
    ]
    assert len(quoted) > 12
    for message in quoted:
        # What the system says, such as 'Connection refused', and what one message passes on of another, come after a colon.
        for part in re.split(r": |…", message):
            if part.strip() and not part[:1].isupper() and part.strip() != "timed out":
                assert part.strip() in known, message
