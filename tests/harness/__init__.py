"""What the outer tests stand on: the product's programs as processes, mounts, and system calls that Python lacks."""

from harness.leftovers import mounts_beneath, processes_marked
from harness.needs import MEASURING, need, need_cage, need_that
from harness.persona import ALICE, BOB, CAROL, ROOT, Persona, outcome
from harness.program import LIVE, Program
from harness.server import ALLOW_ALL, Server, digest, token, token_file
from harness.stage import Export, Mounted, Place, Stage, Work

__all__ = [
    "ALICE",
    "ALLOW_ALL",
    "BOB",
    "CAROL",
    "LIVE",
    "MEASURING",
    "ROOT",
    "Export",
    "Mounted",
    "Persona",
    "Place",
    "Program",
    "Server",
    "Stage",
    "Work",
    "digest",
    "mounts_beneath",
    "need",
    "need_cage",
    "need_that",
    "outcome",
    "processes_marked",
    "token",
    "token_file",
]
