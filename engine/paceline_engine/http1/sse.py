"""Server-sent events cut out of a byte stream, pure.

Invariant: the payloads are the same however the stream is cut into pieces, and no more than one unfinished event of
bounded size is held.
"""

from __future__ import annotations


class EventTooLargeError(Exception):
    """An event grew beyond the splitter's bound."""


class EventSplitter:
    """Gives the payload of each complete event: its `data` lines joined by LF. Lines end with LF or CRLF."""

    __slots__ = ("_held", "_max_event_bytes", "_rest")

    def __init__(self, max_event_bytes: int = 4 * 2**20) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = b""
        self._held = b""  # a CR whose LF may be in the next piece

    @property
    def pending(self) -> bool:
        """Whether an event has begun and not ended: at the end of a stream, that it was cut short."""
        return bool(self._rest.strip())

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads completed by `data`; events without a `data` line (comments, keep-alives) give none."""
        if self._held or b"\r" in data:
            data = self._held + data
            self._held = data[-1:] if data.endswith(b"\r") else b""
            data = data[: len(data) - len(self._held)].replace(b"\r\n", b"\n")
        blocks = (self._rest + data).split(b"\n\n")
        self._rest = blocks.pop()
        if len(self._rest) > self._max_event_bytes:
            raise EventTooLargeError(f"an event is larger than {self._max_event_bytes} bytes")
        return [payload for block in blocks if (payload := _payload(block)) is not None]


def _payload(block: bytes) -> bytes | None:
    if block.startswith(b"data: ") and b"\n" not in block:
        return block[6:]
    lines = [line[5:].removeprefix(b" ") for line in block.split(b"\n") if line.startswith(b"data:") or line == b"data"]
    return b"\n".join(lines) if lines else None
