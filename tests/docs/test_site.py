"""The documents as a site: built without a warning, and complete."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from harness import need_that

TOP = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_that(importlib.util.find_spec("mkdocs"), "mkdocs is not installed")
    target = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(target)]
    # `strict: true` makes every warning a failure: a link or an anchor that leads nowhere, a page that no menu has.
    built = subprocess.run(command, cwd=TOP, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return target


def test_every_page_is_there(site: Path) -> None:
    pages = {path.relative_to(TOP / "docs") for path in (TOP / "docs").rglob("*.md")}
    in_man_alone = {path for path in pages if re.search(r"\.[57]\.md$", path.name)}
    shown = {path.relative_to(site).with_suffix(".md") for path in site.rglob("*.html")} - {Path("404.md"), Path("search.md")}
    # mkdocs calls a folder's README its index.
    shown = {path.with_name("README.md") if path not in pages else path for path in shown}
    assert shown == pages - in_man_alone


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert not re.findall(r'<(?:script|img|link|iframe)[^>]*(?:src|href)="(?:https?:)?//[^"]*"', text), page.name


def test_blocks_and_options_have_become_html(site: Path) -> None:
    quick_start = (site / "getting-started/quick-start.html").read_text("utf-8")
    assert "shell run" not in quick_start
    assert "```" not in quick_start
    page = (site / "man/fuse-gated.8.html").read_text("utf-8")
    assert "<dt><code>--listen HOST:PORT</code></dt>" in page


def test_the_settings_say_that_warnings_fail() -> None:
    settings = yaml.safe_load((TOP / "mkdocs.yml").read_text("utf-8"))
    assert settings["strict"] is True
