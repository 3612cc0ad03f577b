"""A server, its clients and their directories, set up together and taken down together."""

import contextlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from harness.leftovers import clear_away
from harness.log import DEADLINE, whole_lines
from harness.program import Program
from harness.server import ALLOW_ALL, Server, token_file
from harness.waiting import until

ORDINARY_USER: Final = 65534
"""nobody's uid and gid: whom libfuse's server, and a client that is not root, run as."""


WATCHED: Final = "watched"
STRICT: Final = {"cache": {"mode": "strict"}}


class Export:
    """`fuse-gate export` as a process. `directory` is what it exports."""

    def __init__(
        self, workspace: Path, server: Server, directory: Path, name: str, tenant: str, options: Sequence[str], user: int | None
    ) -> None:
        self.directory, self.name, self.workspace = directory, name, workspace
        self.mark = uuid.uuid4().hex
        arguments = ["export", str(directory), "--server", server.url, "--token-file", str(token_file(workspace, tenant, user))]
        arguments += ["--name", name, "--json", *options]
        self.program = Program(f"client.{name}", "fuse_gated.commands.fuse_gate", arguments, workspace, self.mark, user)

    def events(self) -> list[dict[str, Any]]:
        """All events so far."""
        return [json.loads(line) for line in whole_lines(self.program.stdout.data())]

    def wait_for_event(self, event: str, deadline: float = DEADLINE) -> dict[str, Any]:
        """The first event of that kind. Raises AssertionError when the client ends without it."""
        try:
            line = self.program.stdout.wait_for(rf'"event": ?"{event}"', self.program.process, deadline=deadline)
        except AssertionError as error:
            raise AssertionError(f"{error}\nstderr:\n{self.program.stderr.text()}") from None
        found: dict[str, Any] = json.loads(line)
        return found

    def mount_path(self) -> Path:
        """Where the server has mounted it, once it has."""
        return Path(self.wait_for_event("mounted")["path"])

    def stop(self) -> None:
        """SIGTERM, unless it has ended: it must exit with 0, and leave no process in any case."""
        try:
            if self.program.process.poll() is None:
                self.program.stop()
        finally:
            left = clear_away(self.mark)
        if left:
            raise AssertionError("\n".join(left))


@dataclass(frozen=True)
class Mounted:
    """One export mounted on one server: `path` there, `export` on the client."""

    path: Path
    export: Path
    server: Server
    client: Export

    def work(self, name: str) -> "Work":
        """A directory of its own for one test, made on the client."""
        behind = self.export / name
        behind.mkdir()
        behind.chmod(0o777)
        until((self.path / name).exists, "it is seen")
        return Work(self.path / name, behind)


@dataclass(frozen=True)
class Work:
    """One directory, seen from both sides."""

    path: Path
    behind: Path


@dataclass(frozen=True)
class Place:
    """`root` is where tests work; `behind` is the same directory where it really lies (itself, for the driver 'local')."""

    driver: str
    root: Path
    behind: Path

    @property
    def local(self) -> bool:
        return self.driver == "local"


class Stage(contextlib.AbstractContextManager["Stage"]):
    """Starts servers and clients in a directory of its own that everybody may walk through. `driver`: kernel or libfuse, whose
    policies remember nothing unless they say so; or watched, which is kernel with what the product does by itself.

    With `shared` it outlives a test, so what is told while it closes is its own to complain of.
    """

    def __init__(self, driver: str = "kernel", shared: bool = False) -> None:
        self.driver, self.shared = "kernel" if driver == WATCHED else driver, shared
        self._cache: dict[str, Any] = {} if driver == WATCHED else STRICT
        self.directory = Path(tempfile.mkdtemp(prefix="fuse-gated-test-")).resolve()
        self.directory.chmod(0o755)
        self._servers: list[Server] = []
        self._exports: list[Export] = []

    def server(
        self,
        policy: str | dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
        user: int | None = None,
        listen: str | None = None,
    ) -> Server:
        """A server that is ready. `policy` defaults to one tenant, acme, that may do everything; `listen` is as in Server."""
        if user is None and self.driver == "libfuse" and os.geteuid() == 0:
            user = ORDINARY_USER
        name = f"server{len(self._servers) or ''}"
        policy = self.tenant() if policy is None else policy
        if isinstance(policy, dict):
            # What a test does on one side is seen on the other at once.
            # (A copy each: YAML would give what is shared a name.)
            tenants = {tenant: {**deepcopy(self._cache), **body} for tenant, body in policy["tenants"].items()}
            policy = {**policy, "tenants": tenants}
        server = Server(self.directory, policy, settings, user, name, listen)
        self._servers.append(server)
        return server

    @staticmethod
    def tenant(name: str = "acme", **changes: Any) -> dict[str, Any]:
        """A policy with one tenant whose users root and nobody may do everything, but for `changes`."""
        body = {"users": ["root", "nobody"], "groups": ["root"], "ownership": "mapped", "rules": ALLOW_ALL}
        return {"tenants": {name: {**body, **changes}}}

    def export(
        self,
        server: Server,
        directory: Path | None = None,
        name: str = "work",
        tenant: str = "acme",
        options: Sequence[str] = (),
        user: int | None = None,
    ) -> Export:
        """A client that has been started; whether it gets its mount is for the caller to wait for. Without `directory` it
        exports a new one, owned by `user`."""
        if directory is None:
            directory = self.directory / f"export.{name}"
            directory.mkdir(mode=0o755)
            if user is not None:
                os.chown(directory, user, user)
        export = Export(self.directory, server, directory, name, tenant, options, user)
        self._exports.append(export)
        return export

    def mount(
        self,
        policy: str | dict[str, Any] | None = None,
        *,
        server: Server | None = None,
        settings: dict[str, Any] | None = None,
        directory: Path | None = None,
        name: str = "work",
        tenant: str = "acme",
        options: Sequence[str] = (),
        user: int | None = None,
    ) -> Mounted:
        """A server (unless one is given) and a client, mounted. `user` is the client's uid."""
        server = server or self.server(policy, settings)
        client = self.export(server, directory, name, tenant, options, user)
        return Mounted(client.mount_path(), client.directory, server, client)

    def passthrough(self, *options: str) -> Mounted:
        """Mounted as a local filesystem would be: every user, the client's own uids, setuid bits and devices kept."""
        policy = self.tenant(users=["*"], groups=[], ownership="passthrough", symlinks="as-is")
        return self.mount(policy, options=["--trust-server", *options])

    def close(self) -> None:
        """Stop clients, then servers, each in order. Raises AssertionError with all that went wrong."""
        faults = []
        running: list[Export | Server] = [*reversed(self._exports), *reversed(self._servers)]
        for part in running:
            if part.program.ended_unasked():
                faults.append(
                    f"{part.program.name} ended by itself: {part.program.process.returncode}\n{part.program.stderr.text()}"
                )
            try:
                part.stop()
            except AssertionError as error:
                faults.append(str(error))
            part.program.stdout.keep()
            part.program.stderr.keep()
            if self.shared:
                faults += part.program.suspicious_lines()
        self._exports.clear()
        self._servers.clear()
        shutil.rmtree(self.directory)
        if faults:
            raise AssertionError("\n".join(faults))

    def __exit__(self, *_: object) -> None:
        self.close()
