"""fuse-gated as a process, with an /etc and a runtime directory of its own."""

import hashlib
import json
import os
import signal
import uuid
from pathlib import Path
from typing import Any, Final

import yaml

from harness.leftovers import clear_away
from harness.log import whole_lines
from harness.needs import MEASURING
from harness.ports import port_of, reserve
from harness.program import Program

ALLOW_ALL: Final = [{"path": "/**", "allow": ["read", "write", "execute", "delete"]}]


def token(tenant: str) -> str:
    """The tenant's token in all tests. It only has to look like one."""
    return "test-" + hashlib.sha256(f"token of {tenant}".encode()).hexdigest()


def digest(tenant: str) -> str:
    """What stands in a policy for `token(tenant)`."""
    return hashlib.sha256(token(tenant).encode()).hexdigest()


def token_file(directory: Path, tenant: str, owner: int | None = None) -> Path:
    """A file with the tenant's token, as --token-file wants it: nobody but its owner (a uid) may read it."""
    path = directory / f"{tenant}.{'' if owner is None else f'{owner}.'}token"
    path.write_text(token(tenant))
    path.chmod(0o600)
    if owner is not None:
        os.chown(path, owner, owner)
    return path


class Server:
    """`policy` is what stands in policy.yaml: its text, or the mapping, in which tenants without tokens are given theirs.

    `settings` is fuse-gated.yaml's mapping. `user` is the uid that runs the server (None: as we are). `listen` is an address and
    a port for its clients; without it they are loopback's, and its own.
    """

    def __init__(
        self,
        directory: Path,
        policy: str | dict[str, Any],
        settings: dict[str, Any] | None = None,
        user: int | None = None,
        name: str = "server",
        listen: str | None = None,
    ) -> None:
        self.directory, self.mark = directory, uuid.uuid4().hex
        self.etc, self.runtime = directory / f"{name}.etc", directory / f"{name}.run"
        for made in (self.etc, self.runtime):
            made.mkdir(mode=0o755)
        # Held to the end, so that it is nobody else's while a server is started again either.
        self._place = reserve()
        self.port = port_of(self._place)
        listen = listen or f"127.0.0.1:{self.port}"
        self.url = f"ws://{listen}"
        self.write_policy(policy)
        defaults = {"user": "nobody", "audit": {"to": "file"}, **({"seccomp": False} if MEASURING else {})}
        _write(self.etc / "fuse-gated.yaml", yaml.safe_dump({**defaults, **(settings or {})}))
        if user is not None:
            os.chown(self.runtime, user, user)
        arguments = ["--etc", str(self.etc), "--runtime", str(self.runtime), "--listen", listen]
        self.program = Program(name, "fuse_gated.commands.fuse_gated", arguments, directory, self.mark, user)
        try:
            self.program.stderr.wait_for(r"\b[Rr]eady\b", self.program.process)
        except AssertionError:
            self.program.kill()
            self.program.stderr.keep()
            clear_away(self.mark, self.runtime)
            self._place.close()
            raise

    def write_policy(self, policy: str | dict[str, Any]) -> None:
        _write(self.etc / "policy.yaml", policy if isinstance(policy, str) else yaml.safe_dump(_with_tokens(policy)))

    def reload(self, policy: str | dict[str, Any] | None = None, said: str = r"(?i)reload") -> str:
        """SIGHUP, after writing `policy` if one is given. The line on stderr that tells how it went."""
        if policy is not None:
            self.write_policy(policy)
        since = self.program.stderr.size()
        self.program.send(signal.SIGHUP)
        return self.program.stderr.wait_for(said, self.program.process, since)

    def audit(self) -> list[dict[str, Any]]:
        """All records so far, oldest first."""
        path = self.runtime / "audit.jsonl"
        return [json.loads(line) for line in whole_lines(path.read_bytes())] if path.exists() else []

    def stop(self) -> None:
        """SIGTERM, unless it has ended: it must exit with 0, and leave no mount and no process in any case."""
        try:
            if self.program.process.poll() is None:
                self.program.stop()
        finally:
            left = clear_away(self.mark, self.runtime)
            self._place.close()
        if left:
            raise AssertionError("\n".join([*left, self.program.stderr.text()]))


def _with_tokens(policy: dict[str, Any]) -> dict[str, Any]:
    tenants = {name: {"tokens": [{"sha256": digest(name)}], **body} for name, body in policy.get("tenants", {}).items()}
    return {**policy, "tenants": tenants}


def _write(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")
    path.chmod(0o644)
