"""A session whose line can fail: the client is behind a proxy."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from harness.needs import need
from harness.proxy import Proxy
from harness.server import Server
from harness.stage import Stage

OPTIONS: Final = ("--reconnect-delay", "0.05", "--reconnect-max", "0.05")
Kind = TypeVar("Kind", bound="Proxied")


class Proxied:
    """`export` is the client's directory, `mount` the same on the server. What is remembered is watched, unless `policy` says
    otherwise."""

    def __init__(self, stage: Stage, **policy: Any) -> None:
        need("root", "fuse")
        self.server: Server = stage.server(Stage.tenant(**{"cache": {"mode": "watched"}, **policy}))
        self.proxy = Proxy(self.server.port)
        self.export = stage.directory / "export"
        self.export.mkdir(exist_ok=True)
        self.client = stage.export(self.server, self.export, options=["--server", self.proxy.url, *OPTIONS])
        self.mount = self.client.mount_path()


@contextmanager
def flowing(made: Kind) -> Iterator[Kind]:
    """In the end everything flows, and the proxy is closed."""
    try:
        yield made
    finally:
        made.proxy.flow()
        made.proxy.close()
