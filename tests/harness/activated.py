"""A program of the product started as systemd starts a unit: with sockets from descriptor 3 on (sd_listen_fds(3)).

Run with `python -m harness.activated NAME=DESCRIPTOR[,…] MODULE ARGUMENTS…`.
"""

import fcntl
import os
import runpy
import sys

_FIRST = 3
_ASIDE = 100


def main(sockets: str, module: str, *arguments: str) -> None:
    names, _, numbers = zip(*(one.partition("=") for one in sockets.split(",")), strict=True)
    # Aside first: one may have a number that is another's place.
    for place, aside in enumerate([fcntl.fcntl(int(number), fcntl.F_DUPFD, _ASIDE) for number in numbers], _FIRST):
        os.dup2(aside, place)
        os.close(aside)
    os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(names)), "LISTEN_FDNAMES": ":".join(names)}
    # No exec: the user that the program runs as need not be allowed to reach the interpreter.
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
