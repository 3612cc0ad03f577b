"""How far read-ahead goes (readahead.py)."""

from typing import Final

from fuse_gated.turnstile.readers import CHUNK

LARGEST_WINDOW: Final = 16 * CHUNK
LARGEST_SUM: Final = 32 * CHUNK
"""Bytes ahead of all readers of a session."""
ENOUGH: Final = 128 * 2**10
"""Bytes that are read on, after a first READ, before anything is read ahead."""
MOST_ENOUGH: Final = 16 * 2**20
"""The same of a session whose programs have often not wanted what was read ahead for them."""
BELIEVED: Final = 1.0
"""Seconds for which a chunk holds of which nobody would tell that it has changed."""
IDLE: Final = 5.0
"""Seconds after which a reader is not expected to go on."""

READERS: Final = 4
"""Of one file, who read at different places."""
NEAR: Final = 0.003
"""Seconds in which a chunk comes from a client at no distance. Whoever reads as much at once has it as soon by asking for that,
and without its having lain in memory for longer than a processor's cache holds it."""
PROBES: Final = 16
"""Of so many such READs one has a chunk asked for nevertheless, which tells how far away the client is by now."""
QUEUES: Final = 0.005
"""Seconds by which an answer may be late without having queued."""
SYNC: Final = 0o4010000
"""O_SYNC and O_DSYNC of open(2), of which either is enough: each write waits."""
DIRECT: Final = 0o240000
"""ODIRECT of most architectures and of arm's, which are each other's ODIRECTORY (open(2)), with which no file is opened."""
