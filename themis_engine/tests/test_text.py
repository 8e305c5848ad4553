"""Text release: independent of how bytes are cut, never half a character, never past a stop."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from themis_engine.text import TextStream

ALPHABET = st.sampled_from("abcé🙂")
TEXTS = st.text(ALPHABET, max_size=30)
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=3).map(tuple)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, start = [], 0
    for size in sizes:
        pieces.append(data[start : start + size])
        start += size
    return [*pieces, data[start:]]


def expected(text: str, stop: tuple[str, ...]) -> tuple[str, str | None]:
    """The definition, written plainly: the shortest prefix of the text that ends with a stop."""
    for end in range(1, len(text) + 1):
        ending = [s for s in stop if text[:end].endswith(s)]
        if ending:
            longest = max(ending, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(TEXTS, STOPS, st.lists(st.integers(0, 3), max_size=60))
@example("abab", ("bb", "aba"), [1, 1])
@example("🙂", ("🙂",), [1, 1, 1])
def test_released_text_is_the_text_up_to_the_first_stop(
    text: str, stop: tuple[str, ...], sizes: list[int]
) -> None:
    stream = TextStream(stop)
    released = "".join(stream.push(piece) for piece in cut(text.encode(), sizes))
    released += stream.finish()
    assert (released, stream.matched) == expected(text, stop)


@given(TEXTS, st.lists(st.integers(0, 3), max_size=60))
def test_no_piece_has_half_a_character(text: str, sizes: list[int]) -> None:
    stream = TextStream()
    for piece in cut(text.encode(), sizes):
        assert "\ufffd" not in stream.push(piece)
    assert stream.finish() == ""


def test_text_that_cannot_become_a_stop_is_sent_at_once() -> None:
    stream = TextStream(("STOP",))
    assert stream.push(b"hello S") == "hello "
    assert stream.push(b"T") == ""
    assert stream.push(b"ART") == "START"
    assert stream.matched is None


@given(st.binary(max_size=20))
def test_bytes_that_are_no_text_become_replacement_characters(data: bytes) -> None:
    stream = TextStream()
    assert stream.push(data) + stream.finish() == data.decode("utf-8", "replace")
