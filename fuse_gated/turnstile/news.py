"""Rows that a successor was not told yet (tree/journal.py)."""

from fuse_gated.tree.journal import Row


class News:
    """The base of what collects them in `_news` as it changes."""

    def __init__(self) -> None:
        self._news: list[Row] = []

    @property
    def changed(self) -> bool:
        """Whether `rows` has anything to tell."""
        return bool(self._news)

    def rows(self) -> list[Row]:
        """What a successor was not told yet."""
        news, self._news = self._news, []
        return news
