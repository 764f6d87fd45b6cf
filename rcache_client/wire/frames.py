"""Frames: a header of 16 bytes, then a payload of the length the header names.

What it is: the outer grammar of `docs/protocol.md`: encoding a frame, and finding frames in a stream of bytes.
Which thread runs it: the one that owns the connection; a reader is not shared.
What it owns: the bytes received and not yet handed out, never more than one whole frame and what came with its last read.
What it must not know: sockets (bytes are fed in), and what a payload means (that is `grammar`).
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from rcache_client.wire.opcodes import PROTOCOL_VERSION, REPLY_MAGIC, REQUEST_MAGIC, Status

HEADER = Struct(">BBBBIII")
HEADER_BYTES = HEADER.size


class BadFrame(Exception):
    """The stream cannot be read on: say so with `status`, then close.

    `request_id` and `opcode` are those of the frame where its header could be read, else 0.
    """

    def __init__(self, status: Status, reason: str, request_id: int = 0, opcode: int = 0) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.request_id = request_id
        self.opcode = opcode


class Request(NamedTuple):
    """One request: `budget_ms` is how long its caller still waits, 0 where it does not say."""

    opcode: int
    request_id: int
    budget_ms: int
    payload: bytes


class Reply(NamedTuple):
    """One reply: `epoch` is that of the view the answering node goes by."""

    opcode: int
    status: int
    request_id: int
    epoch: int
    payload: bytes


def encode_request(opcode: int, request_id: int, budget_ms: int, payload: bytes = b"") -> bytes:
    """A whole request frame."""
    return HEADER.pack(REQUEST_MAGIC, PROTOCOL_VERSION, opcode, 0, len(payload), request_id, budget_ms) + payload


def encode_reply(opcode: int, status: int, request_id: int, epoch: int, payload: bytes = b"") -> bytes:
    """A whole reply frame."""
    return HEADER.pack(REPLY_MAGIC, PROTOCOL_VERSION, opcode, status, len(payload), request_id, epoch) + payload


class _FrameReader:
    """What both readers share: the bytes held, and the checks of a header before anything is kept for its payload.

    The countdown: `_owed` is the number of bytes the frame at the front still owes beyond those held. A frame is handed
    out when that is zero, with exactly its own bytes; what follows belongs to the next one.
    """

    __slots__ = ("_flags_max", "_held", "_magic", "_owed", "frame_bytes_max")

    def __init__(self, magic: int, flags_max: int, frame_bytes_max: int) -> None:
        self._magic = magic
        self._flags_max = flags_max
        self._held = bytearray()
        self._owed = HEADER_BYTES
        self.frame_bytes_max = frame_bytes_max

    @property
    def held(self) -> int:
        """Bytes received and not yet handed out."""
        return len(self._held)

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun and not ended."""
        return len(self._held) > 0

    def feed(self, data: bytes) -> None:
        """Take in what a read returned."""
        self._held += data
        self._owed -= len(data)

    def _next(self) -> tuple[int, int, int, int, bytes] | None:
        """The next frame as (opcode, flags or status, request id, budget or epoch, payload); None: more bytes needed.

        Raises `BadFrame`; after it the stream has no frame boundaries any more, and every further call raises it again.
        """
        held = self._held
        if self._owed > 0:
            if held and held[0] != self._magic:
                raise self._bad_magic(held[0])
            return None
        magic, version, opcode, flags, length, request_id, extra = HEADER.unpack_from(held)
        end = HEADER_BYTES + length
        if magic != self._magic:
            raise self._bad_magic(magic)
        if version != PROTOCOL_VERSION:
            reason = f"version {version} is not spoken here, only {PROTOCOL_VERSION}"
            raise BadFrame(Status.BAD_VERSION, reason, request_id, opcode)
        if flags > self._flags_max:
            raise BadFrame(Status.BAD_FLAGS, f"flags 0x{flags:02x} are not known; they must be 0", request_id, opcode)
        if end > self.frame_bytes_max:
            reason = f"a frame of {end} bytes; at most {self.frame_bytes_max} are taken"
            raise BadFrame(Status.FRAME_TOO_LONG, reason, request_id, opcode)
        if len(held) < end:
            self._owed = end - len(held)
            return None
        with memoryview(held) as view:
            payload = bytes(view[HEADER_BYTES:end])
        del held[:end]
        self._owed = HEADER_BYTES - len(held)
        return opcode, flags, request_id, extra, payload

    def _bad_magic(self, first: int) -> BadFrame:
        return BadFrame(Status.BAD_MAGIC, f"a frame begins with 0x{self._magic:02x}, not 0x{first:02x}")


class RequestReader(_FrameReader):
    """Finds requests in a stream. `frame_bytes_max` bounds a whole frame, header included, in bytes."""

    __slots__ = ()

    def __init__(self, frame_bytes_max: int) -> None:
        super().__init__(REQUEST_MAGIC, 0, frame_bytes_max)

    def next(self) -> Request | None:
        """The next whole request, or None where more bytes are needed. Raises `BadFrame`."""
        frame = self._next()
        if frame is None:
            return None
        opcode, _flags, request_id, budget_ms, payload = frame
        return Request(opcode, request_id, budget_ms, payload)


class ReplyReader(_FrameReader):
    """Finds replies in a stream. `frame_bytes_max` bounds a whole frame, header included, in bytes."""

    __slots__ = ()

    def __init__(self, frame_bytes_max: int) -> None:
        super().__init__(REPLY_MAGIC, 0xFF, frame_bytes_max)

    def next(self) -> Reply | None:
        """The next whole reply, or None where more bytes are needed. Raises `BadFrame`."""
        frame = self._next()
        if frame is None:
            return None
        opcode, status, request_id, epoch, payload = frame
        return Reply(opcode, status, request_id, epoch, payload)
