"""System calls as somebody else: in a forked child, because credentials are a process's."""

import errno
import os
import pickle
import posix
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final


@dataclass(frozen=True)
class Persona:
    """Who calls: ids that need not be in /etc/passwd."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    umask: int = 0o022

    def with_groups(self, *groups: int) -> "Persona":
        return replace(self, groups=groups)

    def with_umask(self, umask: int) -> "Persona":
        return replace(self, umask=umask)

    def call(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        """What `function` returns there (it must pickle). Raises what it raises."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            self._answer(writer, function, arguments, keywords)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(pid, 0)
        if not answer:
            raise AssertionError(f"the child that called {function!r} died")
        value, error = pickle.loads(answer)
        if error is not None:
            raise error
        return value

    def outcome(self, function: Callable[..., Any], *arguments: Any, **keywords: Any) -> str:
        """`outcome` as this persona."""
        return str(self.call(outcome, function, *arguments, **keywords))

    def _answer(self, writer: int, function: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        try:
            os.setgroups(self.groups)
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)
            os.umask(self.umask)
            answer = pickle.dumps((function(*arguments, **keywords), None))
        except BaseException as error:
            answer = pickle.dumps((None, error))
        # _exit, so that nothing of pytest's runs twice; posix's, because `make coverage` has os._exit write what was measured.
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(answer)
        posix._exit(0)


def outcome(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> str:
    """'ok', or the name of the errno that the call failed with."""
    try:
        function(*arguments, **keywords)
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error))
        return _ALIASES.get(name, name)
    return "ok"


_ALIASES: Final = {"ENOTSUP": "EOPNOTSUPP", "EDEADLOCK": "EDEADLK"}
"""Linux has one number for both names, and Python tells the one that the man pages do not use."""


ROOT: Final = Persona(0, 0)
ALICE: Final = Persona(61001, 62001)
BOB: Final = Persona(61002, 62002)
CAROL: Final = Persona(61003, 62003)
