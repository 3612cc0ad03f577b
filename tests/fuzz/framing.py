"""Two ways to read one connection that must come to the same: edge/frames.py in front of `websockets`, and `websockets` alone."""

from connections import accepting
from seeds import UPGRADE
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import Protocol
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from fuse_gated.edge.frames import Incoming
from fuse_gated.wire.messages import SUBPROTOCOL

_MOST = 70_000
Story = list[tuple[str, bytes]]


class _Reader:
    """What a connection said, in its order: whole binary messages, and every other frame."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.story: Story = []
        self.parts: bytes | None = None
        self.over = False

    def other(self) -> None:
        """What the protocol has found."""
        for event in self.protocol.events_received():
            if self.over:
                return
            if isinstance(event, Frame):
                self.frame(event)
            elif isinstance(event, Request):
                assert isinstance(self.protocol, ServerProtocol)
                self.protocol.send_response(self.protocol.accept(event))
            else:
                assert isinstance(event, Response)

    def frame(self, frame: Frame) -> None:
        data = bytes(frame.data)
        if frame.opcode in (Opcode.BINARY, Opcode.CONT):
            self.parts = (self.parts or b"") + data
            if frame.fin:
                self.message(self.parts)
                self.parts = None
        else:
            self.story.append((frame.opcode.name, data))
            # The end of the connection, in this protocol.
            self.over = self.over or frame.opcode is Opcode.TEXT

    def message(self, data: bytes | bytearray) -> None:
        self.story.append(("message", bytes(data)))

    def end(self) -> tuple[object, ...]:
        """All that there is to compare; but not what was answered, which a client masks by chance."""
        protocol = self.protocol
        if self.over:
            return (self.story,)
        return self.story, self.parts, protocol.state, protocol.close_sent, str(protocol.parser_exc)


class _Alone(_Reader):
    def take(self, data: bytes) -> None:
        if not self.over:
            self.protocol.receive_data(data)
            self.other()


class _InFront(_Reader):
    def __init__(self, protocol: Protocol) -> None:
        super().__init__(protocol)
        self.incoming = Incoming(protocol, _MOST, self.message, self.other)
        self.incoming.on_ping = lambda: self.story.append((Opcode.PING.name, b""))

    def frame(self, frame: Frame) -> None:
        super().frame(frame)
        self.incoming.fragmented = self.parts is not None
        self.incoming.over = self.over

    def take(self, data: bytes) -> None:
        while data and not self.over:
            room = memoryview(self.incoming.room())[: len(data)]
            room[:] = data[: len(room)]
            data = data[len(room) :]
            self.incoming.take(len(room))


def framing(data: bytes) -> None:
    """The first byte says whose side it is, the second in pieces of how many bytes it comes. LONG stands for many bytes."""
    if len(data) < 2:
        return
    # What no fuzzer would write out. The zeros: a header is looked at when all of it is there, so that is seen to.
    said = data[2:].replace(b"LONG", b"l" * 66_000) + bytes(14)
    size = (data[1] + 1) * (1 if len(said) < 10_000 else 300)
    ends = []
    for kind in (_Alone, _InFront):
        protocol, head = _opened(data[0] & 1)
        reader = kind(protocol)
        reader.take(head)
        for start in range(0, len(said), size):
            reader.take(said[start : start + size])
        ends.append(reader.end())
    assert ends[0] == ends[1], f"{ends[0]!r:.600} is not {ends[1]!r:.600}"


def _opened(side: int) -> tuple[Protocol, bytes]:
    """A protocol that waits for the other side's half of the handshake, and that half."""
    if side:
        return ServerProtocol(subprotocols=[SUBPROTOCOL], extensions=None, max_size=_MOST), UPGRADE
    client = ClientProtocol(parse_uri("ws://x/"), subprotocols=[SUBPROTOCOL], max_size=_MOST)
    client.send_request(client.connect())
    return client, accepting(b"".join(client.data_to_send()))


TARGETS = {"framing": framing}
