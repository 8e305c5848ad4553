"""Reading and writing the protobuf wire format, as far as ONNX files need it.

The format: https://protobuf.dev/programming-guides/encoding. A message is a series of fields: a key
(number and wire type, as a varint) and a value. Nothing is copied but what is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Malformed(ValueError):
    """The bytes are no message. `cut` is true if more bytes than there are were announced."""

    def __init__(self, message: str, *, cut: bool = False) -> None:
        super().__init__(message)
        self.cut = cut


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a message: its value if a varint, else the place [start, end) of its bytes.

    `key` is where the field itself begins.
    """

    number: int
    value: int
    key: int
    start: int
    end: int


def fields(data: memoryview, start: int = 0, end: int | None = None) -> Iterator[Field]:
    """The fields of the message in `data[start:end]`. Raises `Malformed`."""
    at = start
    stop = len(data) if end is None else end
    while at < stop:
        key_at = at
        key, at = _varint(data, at, stop)
        number, wire = key >> 3, key & 7
        value, begin = 0, at
        if wire == _VARINT:
            value, at = _varint(data, at, stop)
        elif wire == _BYTES:
            length, begin = _varint(data, at, stop)
            at = begin + length
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise Malformed(f"there is no wire type {wire}")
        if number == 0:
            raise Malformed("there is no field 0")
        if at > stop:
            raise Malformed(f"field {number} needs {at - stop} more bytes", cut=True)
        yield Field(number, value, key_at, begin, at)


def text(data: memoryview, field: Field) -> str:
    """A string field. Raises `Malformed`."""
    try:
        return bytes(data[field.start : field.end]).decode()
    except UnicodeDecodeError as error:
        raise Malformed(f"a name is no text: {error}") from error


def numbers(data: memoryview, field: Field) -> list[int]:
    """A repeated integer field: one number, or several that are packed."""
    if field.start == field.end:
        return []
    found = []
    at = field.start
    while at < field.end:
        value, at = _varint(data, at, field.end)
        found.append(value)
    return found


def varint(value: int) -> bytes:
    """An unsigned number."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number_field(number: int, value: int) -> bytes:
    """A field with an unsigned number."""
    return varint(number << 3 | _VARINT) + varint(value)


def bytes_field(number: int, value: bytes | str) -> bytes:
    """A field with bytes: a string, or another message."""
    content = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | _BYTES) + varint(len(content)) + content


def _varint(data: memoryview, at: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= stop:
            raise Malformed("a number is incomplete", cut=True)
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise Malformed("a number is too long")
