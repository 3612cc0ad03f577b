"""Where things are, unless the command line says otherwise."""

import os
from pathlib import Path
from typing import Final

ETC: Final = Path("/etc/fuse-gated")
RUNTIME: Final = Path("/run/fuse-gated")


def own_runtime() -> Path:
    """The runtime directory of a daemon that we start: root's is the system's, everybody else has one for the login."""
    if os.geteuid() == 0:
        return RUNTIME
    return Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}") / "fuse-gated"


def runtime_to_ask() -> Path:
    """The runtime directory of the daemon that is meant: our own, if there is one or none of the system's (whose control
    socket answers root and the daemon's own user alone)."""
    own = own_runtime()
    # Not Path.is_dir, which raises where we may not look (Python 3.13): in a service, /run/user is closed.
    return RUNTIME if os.path.isdir(RUNTIME) and not os.path.isdir(own) else own
