"""The payload of each message: msgspec structs as msgpack, token ids and matrices as raw memory."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import msgspec

from themis_core.errors import InvalidRequest
from themis_core.messages import (
    AdapterWeight,
    BackendStats,
    ChatMessage,
    EmbedRequest,
    EmbedResponse,
    GenerateEvent,
    GenerateRequest,
    ModelInfo,
    Usage,
)
from themis_core.protocol.failures import Failure
from themis_core.protocol.frames import Message, ProtocolError
from themis_core.protocol.matrix import ITEM_SIZE, Format, Matrix

MAGIC = "themis"
MAJOR, MINOR = 1, 0

T = TypeVar("T")
Ids = tuple[int, ...]
Item = GenerateEvent | Failure
PLACEHOLDER: Ids = (0,)


class _Wire(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=False):
    """Fields by position: a later minor version may append some."""


class Hello(_Wire, frozen=True):
    """The client's first message: who it is, and what it speaks."""

    magic: str
    major: int
    minor: int
    features: tuple[str, ...] = ()
    client: str = ""


class Welcome(_Wire, frozen=True):
    """The server's answer: what both speak, the model, how many requests may be in flight."""

    major: int
    minor: int
    features: tuple[str, ...]
    info: ModelInfo
    max_in_flight: int


class Generate(_Wire, frozen=True):
    """A request and its first credit. `packed`: the prompt's token ids are in the buffer."""

    request: GenerateRequest
    credit: int
    packed: bool = False


class TokenIds(_Wire, frozen=True):
    """Token ids: in the buffer, or here where one of them is no 32-bit number."""

    ids: Ids | None = None


class LoadAdapter(_Wire, frozen=True):
    """The arguments of `Backend.load_adapter`."""

    name: str
    path: str
    description: str = ""


class Embeddings(_Wire, frozen=True):
    """An `EmbedResponse` whose matrix is in the buffer: rows of `columns` items of `format`.

    `ragged` has the vectors themselves where they are of different lengths.
    """

    columns: int
    format: str
    usage: Usage
    ragged: tuple[tuple[float, ...], ...] = ()


_encoder = msgspec.msgpack.Encoder()
Prompt = str | tuple[ChatMessage, ...]

_decoders: dict[Any, msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(kind)
    for kind in (
        Hello,
        Welcome,
        Generate,
        TokenIds,
        LoadAdapter,
        Embeddings,
        Failure,
        EmbedRequest,
        BackendStats,
        Prompt,
        str,
        int,
        tuple[AdapterWeight, ...],
        list[tuple[int, Item]],
    )
}
_events: msgspec.msgpack.Decoder[list[tuple[int, Item]]] = _decoders[list[tuple[int, Item]]]


def encode(value: Any) -> bytes:
    """msgpack of a struct or plain value. Raises `InvalidRequest` for what it cannot express."""
    try:
        return _encoder.encode(value)
    except (TypeError, OverflowError, ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"The request cannot be sent to another process: {error}.",
            remedy="Use plain JSON values, integers of 64 bits and text without lone surrogates.",
        ) from error


def decode(message: Message, kind: type[T] | Any) -> T:
    """The payload as `kind`, one of those above. Raises `ProtocolError`.

    A `ThemisError` is raised by a well-formed request whose values mean nothing.
    """
    try:
        value: T = _decoders[kind].decode(message.payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"a message of kind {message.kind} cannot be read: {error}") from error
    return value


def reader(kind: type[T]) -> Callable[[Message], T]:
    """`decode` for one kind."""
    return partial(decode, kind=kind)


def decode_events(message: Message) -> list[tuple[int, Item]]:
    """The events of one step, each with its request's id. Raises `ProtocolError`."""
    try:
        return _events.decode(message.payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"events cannot be read: {error}") from error


def pack_ids(ids: Ids) -> memoryview | None:
    """Token ids as 32-bit numbers; None if one of them does not fit."""
    try:
        return memoryview(struct.pack(f"<{len(ids)}I", *ids))
    except struct.error:
        return None


def unpack_ids(buffer: memoryview) -> Ids:
    """The ids in a buffer. Raises `ProtocolError`."""
    if buffer.nbytes % 4:
        raise ProtocolError(f"{buffer.nbytes} bytes are no 32-bit token ids")
    return struct.unpack(f"<{buffer.nbytes // 4}I", buffer)


def encode_generate(request: GenerateRequest, credit: int) -> tuple[bytes, memoryview | None]:
    """Payload and buffer of a `GENERATE` message. Raises `InvalidRequest`."""
    prompt = request.prompt
    packed = pack_ids(prompt) if isinstance(prompt, tuple) else None
    if packed is None:
        return encode(Generate(request, credit)), None
    # The constructor's checks have been passed; they would only cost time here.
    bare = msgspec.structs.replace(request, prompt=PLACEHOLDER)
    return encode(Generate(bare, credit, packed=True)), packed


def decode_generate(message: Message) -> Generate:
    """Raises `ProtocolError`, or `InvalidRequest` as making the request would have."""
    call: Generate = decode(message, Generate)
    if not call.packed:
        return call
    if not message.buffer:
        raise ProtocolError("a request without its token ids")
    ids = unpack_ids(message.buffer)
    return Generate(msgspec.structs.replace(call.request, prompt=ids), call.credit)


def encode_ids(ids: Ids) -> tuple[bytes, memoryview | None]:
    """Payload and buffer for token ids. Raises `InvalidRequest`."""
    packed = pack_ids(ids)
    if packed is None:
        return encode(TokenIds(ids)), None
    return encode(TokenIds()), packed if len(packed) else None


def decode_ids(message: Message) -> Ids:
    """Raises `ProtocolError`."""
    body: TokenIds = decode(message, TokenIds)
    if body.ids is not None:
        return body.ids
    return unpack_ids(message.buffer) if message.buffer is not None else ()


def encode_embeddings(response: EmbedResponse) -> tuple[bytes, memoryview | None, object]:
    """Payload, buffer and the buffer's owner. Raises `InvalidRequest`."""
    vectors: Sequence[Sequence[float]] = response.embeddings
    if isinstance(vectors, Matrix):
        matrix = vectors
    else:
        columns = len(vectors[0]) if vectors else 0
        if not columns or any(len(vector) != columns for vector in vectors):
            ragged = tuple(tuple(vector) for vector in vectors)
            return encode(Embeddings(0, "d", response.usage, ragged)), None, None
        flat = array("d", (value for vector in vectors for value in vector))
        matrix = Matrix(memoryview(flat), columns, "d")
    head = Embeddings(matrix.columns, matrix.item, response.usage)
    return encode(head), matrix.memory, matrix.owner


def decode_embeddings(message: Message) -> EmbedResponse:
    """The vectors as a `Matrix` that shares the message's memory. Raises `ProtocolError`."""
    head: Embeddings = decode(message, Embeddings)
    if message.buffer is None:
        return EmbedResponse(embeddings=head.ragged, usage=head.usage)
    if head.format not in ITEM_SIZE or head.columns < 1:
        raise ProtocolError(f"a matrix of {head.columns} columns of {head.format!r}")
    form: Format = "f" if head.format == "f" else "d"
    try:
        matrix: Any = Matrix(message.buffer, head.columns, form)
    except ValueError as error:
        raise ProtocolError(str(error)) from error
    return EmbedResponse(embeddings=matrix, usage=head.usage)
