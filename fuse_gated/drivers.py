"""The drivers, in the order in which they are tried: a session that cannot be mounted is open all the same, without a mount.

It has the methods of `mounter.Mounter`. What 'network' gives is no mount: programs attach to the session by sockets
(edge/fuse_network.py).
"""

import os
from collections.abc import Callable
from typing import Final

from fuse_gated import own_places
from fuse_gated.edge import keeping, process
from fuse_gated.edge.memory import make_state
from fuse_gated.errors import ConfigurationError, OperatorError
from fuse_gated.gate.gate import Gate
from fuse_gated.libfuse_mounter import LibfuseMounter
from fuse_gated.mounter import Found, Mounter, OnAnswer

NETWORK: Final = "network"
LOCAL: Final = "local"
"""Not in the settings: what a session without a mount has where the policy gives it a copy in its place."""
_PROGRAM: Final = "fuse-gated"


class Drivers:
    """`mounter` makes mounts, by the driver `mounting`, if `names` has that one; `names` is what the settings list. `runtime` is
    the runtime directory, for copies where no mount keeper makes their directories.

    Raises ConfigurationError where none of them can be had.
    """

    def __init__(
        self, mounter: Mounter | LibfuseMounter | None, mounting: str, names: tuple[str, ...], runtime: str = ""
    ) -> None:
        self._mounter = mounter
        self._runtime = runtime
        self.names: tuple[str, ...] = tuple(
            name for name in names if name == NETWORK or (name == mounting and mounter is not None)
        )
        """Those that can be had here, the first one first."""
        if not self.names:
            raise _none_left(mounting)
        self._unmounted: set[tuple[str, str]] = set()

    @property
    def alive(self) -> bool:
        """Whether sessions can be opened."""
        return NETWORK in self.names or self.can_mount

    @property
    def can_mount(self) -> bool:
        """Whether whoever makes mounts is there."""
        return self._mounter is not None and self._mounter.alive

    @property
    def has_keeper(self) -> bool:
        """Whether a mount keeper keeps the mounts when we end."""
        return isinstance(self._mounter, Mounter) and self._mounter.alive

    def mount(self, gate: Gate, export: str, then: OnAnswer) -> None:
        """Open an export of the gate's tenant by the first driver that can. `then` gets Mounted with the device and the state
        (without a mount: with no path), or Refused."""
        self._try(list(self.names), gate, export, then)

    def unmount(self, tenant: str, export: str, then: OnAnswer) -> None:
        if self._mounter is None or (tenant, export) in self._unmounted:
            self._unmounted.discard((tenant, export))
            then(keeping.Done(id=0), [])
        else:
            self._mounter.unmount(tenant, export, then)

    def place(self, gate: Gate, export: str, then: OnAnswer) -> None:
        """A directory for a copy of an export that is open without a mount (`Mounter.place`)."""
        if isinstance(self._mounter, Mounter):
            self._mounter.place(gate, export, then)
            return
        try:
            path, given = own_places.place(self._runtime, gate, export)
        except (OSError, OperatorError) as error:
            then(keeping.Refused(id=0, reason=str(error)), [])
        else:
            then(keeping.Placed(id=0, path=path), list(given))

    def displace(self, tenant: str, export: str, aside: str, then: OnAnswer) -> None:
        """Take it away; what is not empty is put aside under a name with `aside` in it."""
        if isinstance(self._mounter, Mounter):
            self._mounter.displace(tenant, export, aside, then)
            return
        try:
            own_places.displace(self._runtime, tenant, export, aside)
        except (OSError, OperatorError) as error:
            then(keeping.Refused(id=0, reason=str(error)), [])
        else:
            then(keeping.Done(id=0), [])

    def note(self, tenant: str, export: str, data: bytes) -> None:
        """Without a mount nobody would look for it: the session ends with the daemon."""
        if self._mounter is not None and (tenant, export) not in self._unmounted:
            self._mounter.note(tenant, export, data)

    def fetch(self, then: Callable[[list[Found]], None]) -> None:
        if self._mounter is None:
            then([])
        else:
            self._mounter.fetch(then)

    def apply(self, gate: Gate, exports: list[str]) -> None:
        mounted = [export for export in exports if (gate.tenant.name, export) not in self._unmounted]
        if self._mounter is not None and mounted:
            self._mounter.apply(gate, mounted)

    def _try(self, names: list[str], gate: Gate, export: str, then: OnAnswer) -> None:
        name = names.pop(0)
        if name == NETWORK or self._mounter is None:
            self._open(gate.tenant.name, export, then)
            return

        def answered(answer: keeping.FromKeeper, fds: list[int]) -> None:
            if isinstance(answer, keeping.Refused) and names:
                shown = f"{gate.tenant.name}/{export}"
                process.tell(_PROGRAM, f"{shown} is not mounted ({answer.reason}): it is open without a mount")
                self._try(names, gate, export, then)
            else:
                then(answer, fds)

        self._mounter.mount(gate, export, answered)

    def _open(self, tenant: str, export: str, then: OnAnswer) -> None:
        try:
            state = make_state()
        except OSError as error:
            then(keeping.Refused(id=0, reason=f"no memory for its state: {error.strerror}"), [])
            return
        self._unmounted.add((tenant, export))
        # In the device's place: something that can be watched, and never is ready.
        then(keeping.Mounted(id=0, path=""), [os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), state])


def _none_left(mounting: str) -> ConfigurationError:
    missing = "libfuse" if mounting == "kernel" else "kernel"
    how = "as root it is the kernel driver that mounts" if mounting == "kernel" else "an ordinary user's server mounts by libfuse"
    return ConfigurationError(
        f"fuse-gated.yaml has drivers: [{missing}], but {how}", f"add {mounting} or network, or leave `drivers` out"
    )
