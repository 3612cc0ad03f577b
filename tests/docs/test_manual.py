"""The manual pages: made of what there is, well-formed, and with every section that a reader looks for."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness import need

from fuse_gated.gate.audit import KINDS, SEALED

TOP = Path(__file__).parents[2]
MAN = TOP / "docs" / "man"
PROGRAMS = ("fuse-gate.1", "fuse-gatectl.1", "fuse-gated-mountd.8", "fuse-gated.8")
FORMATS = ("fuse-gated-journal.7", "fuse-gated-policy.5", "fuse-gated.yaml.5")
ALWAYS = ["NAME", "SYNOPSIS", "DESCRIPTION", "FILES", "EXAMPLES", "SEE ALSO"]


def sections(name: str) -> list[str]:
    return re.findall(r'^\.SH "(.*)"$', (MAN / name).read_text("ascii"), re.MULTILINE)


@pytest.mark.parametrize("maker", ["man.py", "completion.py"])
def test_what_is_committed_is_what_would_be_made(maker: str) -> None:
    command = [sys.executable, f"packaging/dev/{maker}", "--check"]
    made = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


def test_the_check_finds_what_is_not(tmp_path: Path) -> None:
    copied = tmp_path / "checkout"
    for part in ("docs", "packaging/dev", "fuse_gated"):
        shutil.copytree(TOP / part, copied / part, ignore=shutil.ignore_patterns("__pycache__"))
    parser = copied / "fuse_gated/commands/fuse_gate.py"
    parser.write_text(parser.read_text("utf-8").replace('"--read-only"', '"--writable"'), "utf-8")
    checked = subprocess.run(
        [sys.executable, str(copied / "packaging/dev/man.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 1
    assert checked.stderr == "docs/man/fuse-gate.1 is not what its sources say: make man\n"


def test_every_page_is_there() -> None:
    assert sorted(path.name for path in MAN.glob("*.[1-8]")) == sorted([*PROGRAMS, *FORMATS])


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_s_page_has_every_section(name: str) -> None:
    assert {*ALWAYS, "OPTIONS", "EXIT STATUS"} <= set(sections(name))


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_s_page_has_every_section(name: str) -> None:
    assert sections(name) == ALWAYS


@pytest.mark.parametrize("name", [*PROGRAMS, *FORMATS])
def test_mandoc_has_nothing_to_say(name: str) -> None:
    need("mandoc")
    said = subprocess.run(["mandoc", "-Tlint", str(MAN / name)], capture_output=True, text=True, check=False)
    assert said.stdout + said.stderr == ""


@pytest.mark.parametrize("name", [*PROGRAMS, *FORMATS])
def test_groff_has_nothing_to_say(name: str) -> None:
    need("man", "groff")
    shown = subprocess.run(["man", "--warnings", "-l", str(MAN / name)], capture_output=True, text=True, check=False)
    assert shown.stderr == ""
    assert "NAME\n" in shown.stdout


def test_pages_refer_to_pages_there_are() -> None:
    ours = {f"{name.rpartition('.')[0]}({name[-1]})" for name in (*PROGRAMS, *FORMATS)}
    for name in (*PROGRAMS, *FORMATS):
        text = (MAN / name).read_text("ascii").replace(r"\fB", "").replace(r"\fR", "").replace("\\", "")
        referred = set(re.findall(r"\b(fuse-gate[a-z.-]*\(\d\))", text))
        assert referred <= ours, name
        assert referred, name


def test_every_kind_of_record_is_told(tables_of: Any) -> None:
    (rows,) = tables_of(journal_fields("## Kinds"))
    assert {row[0].strip("`"): row[1] for row in rows} == {
        kind: f"`{message_id}`, {priority}" for kind, (message_id, priority, _) in KINDS.items()
    }


def test_every_field_is_told(tables_of: Any) -> None:
    (rows,) = tables_of(journal_fields("## Fields"))
    assert [row[0].strip("`") for row in rows] == [*SEALED, "FUSE_GATED_CHAIN"]


def journal_fields(heading: str) -> str:
    text = (TOP / "docs/production/journal-fields.md").read_text("utf-8")
    return text.partition(f"{heading}\n")[2].partition("\n## ")[0]
