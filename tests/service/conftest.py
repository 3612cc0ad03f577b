"""What the whole-system tests share: a server with an honest session and room for a hostile one."""

import copy
import os
from collections.abc import Iterator
from typing import Any

import pytest
from harness import ALLOW_ALL, Mounted, Server, Stage, need


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """One stage for the module, with the kernel driver."""
    need("root", "fuse")
    with Stage("kernel", shared=True) as stage:
        yield stage


@pytest.fixture
def own_stage() -> Iterator[Stage]:
    """A stage of the test's own."""
    need("root", "fuse")
    with Stage("kernel") as stage:
        yield stage


def two_tenants(**changes: Any) -> dict[str, Any]:
    """acme is honest, eve is not; both may do everything, but for `changes` to eve's."""
    return {"tenants": {"acme": _body(), "eve": {**_body(), **changes}}}


def _body() -> dict[str, Any]:
    """A new one each time: YAML would make an alias of one that stands twice, which a policy may not have."""
    return {"users": ["root", "nobody"], "groups": ["root"], "rules": copy.deepcopy(ALLOW_ALL), "exports": {"max_sessions": 50}}


class Witness:
    """An honest session, which must not notice what another one does."""

    def __init__(self, mounted: Mounted) -> None:
        self._mounted = mounted
        self._count = 0

    @property
    def server(self) -> Server:
        return self._mounted.server

    def works(self) -> None:
        """Write through the mount, read on the client, list, and remove again."""
        self._count += 1
        name = f"witness-{self._count}"
        (self._mounted.path / name).write_bytes(name.encode())
        assert (self._mounted.export / name).read_bytes() == name.encode()
        assert name in os.listdir(self._mounted.path)
        (self._mounted.path / name).unlink()
        assert self._mounted.client.program.process.poll() is None
        events = [event["event"] for event in self._mounted.client.events()]
        assert not {"connection-lost", "closed"} & set(events), "the session is another one than at first"


def _settings(login_deadline: str) -> dict[str, Any]:
    return {"request_deadline": "2s", "admission": {"login_deadline": login_deadline, "startups": 40, "per_address": 30}}


@pytest.fixture(scope="module")
def witness(stage: Stage) -> Witness:
    rules = [{"path": "/hidden-*", "hide": True}, *copy.deepcopy(ALLOW_ALL)]
    return Witness(stage.mount(two_tenants(rules=rules), settings=_settings("2s")))


@pytest.fixture
def patient(own_stage: Stage) -> Witness:
    """On a server of the test's own, where none of the strangers is sent away before all of them have come."""
    return Witness(own_stage.mount(two_tenants(), settings=_settings("10s")))


@pytest.fixture
def unharmed(witness: Witness) -> Iterator[Server]:
    """The server. Before and after the test its honest session works."""
    witness.works()
    yield witness.server
    witness.works()
