"""What mkdocs does besides (mkdocs.yml, hooks)."""

import html
import importlib
import re
import sys
from pathlib import Path
from typing import Any

_TABLE_CODE = re.compile(r"`([^`\n]*\\\|[^`\n]*)`")


def on_config(config: Any) -> Any:
    """Called once: the decisions stand in the menu, as many as there are."""
    folder = Path(config.docs_dir) / "decisions"
    config.nav.append({"Decisions": [f"decisions/{page.name}" for page in sorted(folder.glob("*.md"))]})
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called for each page, before it becomes HTML."""
    if page.file.src_uri.startswith("man/"):
        # mkdocs loads this file by its path, without its directory.
        sys.path.insert(0, str(Path(__file__).parent))
        markdown = importlib.import_module("man").expanded(markdown)
    # A bar in a table's code is escaped, which only some renderers undo.
    markdown = _TABLE_CODE.sub(lambda found: f"<code>{html.escape(found[1]).replace(chr(92) + '|', '&#124;')}</code>", markdown)
    # Behind a block's language stands what our tests do with it; Markdown knows only one word there.
    return re.sub(r"^( *```[a-z]+) [^\n`]+$", r"\1", markdown, flags=re.MULTILINE)
