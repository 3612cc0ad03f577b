"""What the tests of the commands share: a configuration to read, and somebody at the control socket."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fuse_gated import control, supervision
from fuse_gated.errors import GateError

POLICY = """\
tenants:
  acme:
    tokens: [{sha256: "%s"}]
    users: [daemon]
    rules:
      - {path: "/.env*", hide: true}
      - {path: "/src/**", allow: [read, write, delete]}
      - {path: "/**", allow: [read]}
""" % ("a" * 64)


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """A configuration directory with a sound policy."""
    directory = tmp_path / "etc"
    directory.mkdir(mode=0o755)
    write(directory / "policy.yaml", POLICY)
    return directory


def write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)


class ControlSocket:
    """Answers at the control socket of the directory `runtime` by functions of the arguments, one for each command."""

    def __init__(self, runtime: Path) -> None:
        self.runtime = runtime
        self.answers: dict[str, Callable[..., Any]] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(runtime / control.SOCKET_NAME))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    request = control.decode_request(connection.recv(control.MAX_REQUEST))
                    answer = self._answer(request)
                    if isinstance(answer.result, control.Seen):
                        descriptor = supervision.enclose(answer.result)
                        socket.send_fds(connection, control.encode_answer(control.Answer(result={})), [descriptor])
                        os.close(descriptor)
                        continue
                    for packet in control.encode_answer(answer):
                        connection.sendall(packet)

    def _answer(self, request: control.Request) -> control.Answer:
        try:
            return control.Answer(result=self.answers[request.command](**request.arguments))
        except GateError as error:
            return control.Answer(error.message, error.hint)


@pytest.fixture
def control_socket(tmp_path: Path) -> Iterator[ControlSocket]:
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o755)
    served = ControlSocket(runtime)
    yield served
    served.close()
