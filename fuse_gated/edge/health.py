"""GET /healthz on the port of the clients, for load balancers and orchestrators: 200 while new sessions are taken, else 503.

Such a check is plain HTTP and no upgrade, comes without a token, and may be a HEAD, or HTTP/1.0, which not every version of
`websockets` reads. So its first line is read here, and put in a form that all of them do.
"""

import contextlib
import http
import re
from collections.abc import Generator
from typing import Final

from websockets.http11 import Response
from websockets.protocol import State
from websockets.server import ServerProtocol

PATH: Final = "/healthz"
_LONGEST_LINE: Final = 8192
_CHECK: Final = re.compile(rb"(GET|HEAD) /healthz(?:\?[^ ]*)? HTTP/1\.[01]\r?\n")


class Reception(ServerProtocol):
    """A WebSocket's server side that knows a health check when it reads one. `checked` is its method, '' for anything else."""

    checked = ""

    def parse(self) -> Generator[None, None, None]:
        if self.state is State.CONNECTING:
            # A line that is too long, or that never ends, is left to the protocol, which says what is wrong with it.
            with contextlib.suppress(EOFError, RuntimeError):
                line = yield from self.reader.read_line(_LONGEST_LINE)
                found = _CHECK.fullmatch(line)
                if found is not None:
                    self.checked = found[1].decode()
                    line = bytearray(b"GET /healthz HTTP/1.1\r\n")
                self.reader.buffer[:0] = line
        yield from super().parse()

    def answer_check(self, trouble: str) -> None:
        """Answer a check: 503 with `trouble`, 200 where there is none (RFC 9110)."""
        status = http.HTTPStatus.SERVICE_UNAVAILABLE if trouble else http.HTTPStatus.OK
        answer = self.reject(status, f"{trouble or 'ok'}\n")
        answer.headers["Cache-Control"] = "no-store"
        body = b"" if self.checked == "HEAD" else answer.body
        self.send_response(Response(answer.status_code, answer.reason_phrase, answer.headers, body))
