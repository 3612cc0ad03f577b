"""sqlite3 with two writing processes, in rollback and in WAL mode."""

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from harness import Work

ROWS = 60

WRITER = """
import sqlite3, sys
path, writer, rows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
connection = sqlite3.connect(path, timeout=60, isolation_level=None)
for number in range(rows):
    connection.execute("BEGIN IMMEDIATE")
    total, = connection.execute("SELECT value FROM total").fetchone()
    connection.execute("INSERT INTO entry VALUES (?, ?)", (writer, number))
    connection.execute("UPDATE total SET value = ?", (total + 1,))
    connection.execute("COMMIT")
connection.close()
"""


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "wal"])
def test_two_writers(work: Work, mode: str) -> None:
    path = work.path / "database"
    connection = sqlite3.connect(path, timeout=60, isolation_level=None)
    assert connection.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode,)
    connection.execute("CREATE TABLE entry (writer INTEGER, number INTEGER)")
    connection.execute("CREATE TABLE total (value INTEGER)")
    connection.execute("INSERT INTO total VALUES (0)")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(writer), str(ROWS)]) for writer in range(2)]
    try:
        assert [writer.wait(120) for writer in writers] == [0, 0]
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert connection.execute("SELECT value FROM total").fetchone() == (2 * ROWS,)
    assert connection.execute("SELECT COUNT(DISTINCT writer * 1000 + number) FROM entry").fetchone() == (2 * ROWS,)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    _check_behind(work.behind / "database")


def _check_behind(path: Path) -> None:
    """What was committed on the server is there on the client."""
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT value FROM total").fetchone() == (2 * ROWS,)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


@pytest.mark.beyond_libfuse("invalidation")
def test_a_writer_on_each_side_in_rollback_mode(work: Work) -> None:
    """Locks are taken on the client, so both sides exclude each other; WAL's shared memory cannot span two machines."""
    connection = sqlite3.connect(work.path / "database", timeout=60, isolation_level=None)
    connection.executescript("CREATE TABLE entry (writer, number); CREATE TABLE total (value); INSERT INTO total VALUES (0)")
    paths = (work.path / "database", work.behind / "database")
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(n), str(ROWS)]) for n, path in enumerate(paths)]
    try:
        assert [writer.wait(120) for writer in writers] == [0, 0]
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    assert connection.execute("SELECT value FROM total").fetchone() == (2 * ROWS,)
    connection.close()
    _check_behind(work.behind / "database")
