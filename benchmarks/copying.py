"""Weights set by hand, so that the model continues a text as it went on before.

Two of the layers are an induction circuit (Olsson et al. 2022, "In-context Learning and Induction
Heads"), made exactly instead of learned:

- Layer 0 has six heads that look 1 to 6 tokens back, and note a few bits of the code of the token
  that they find there.
- Layer 1 looks for a place before which the same tokens stand as here, the current one among them,
  and brings the code of the token that stands there: ten heads, a tenth each.

The codes are random signs, one of them for each token of the vocabulary, and the output is the
token whose code was brought. The other layers compute as much as any, on random weights, and their
results are multiplied by zeros: so a step costs what it costs in a model of this shape.
"""

from __future__ import annotations

import numpy as np

from benchmarks.shape import HEAD, HEADS, HIDDEN, LAYER, LAYERS, ROPE_BASE, Matrix

# The dimensions of what flows between the layers: a code, notes of earlier tokens, and constants.
_CODE = 640
_NOTES = slice(640, 704)
_CONSTANT = 704
_BACK = 6  # Earlier tokens that are noted. In JSON, fewer would often be the same ones.
_BITS = 8  # Of the code of each of them.
# Positions are rotated in the first pairs of a head, and left alone in the others.
_ROTATED = 16
_NEVER = 1e9

_SHARP = 8.0  # Attention's logits for one bit.
_BROUGHT = 4.0  # How much the brought code outweighs the token's own.


def embeddings(chance: np.random.Generator, tokens: int) -> Matrix:
    """(tokens, HIDDEN), each row a code, no notes, and constants."""
    rows = np.zeros((tokens, HIDDEN), np.float32)
    rows[:, :_CODE] = chance.integers(0, 2, (tokens, _CODE)) * 2 - 1
    rows[:, _CONSTANT:] = 1.0
    return rows


def rope_factors() -> Matrix:
    """What each pair's frequency is divided by, as Llama 3.1 has it for long contexts."""
    factors = np.ones(HEAD // 2, np.float32)
    factors[_ROTATED // 2 :] = _NEVER
    return factors


def layer(number: int) -> dict[str, Matrix]:
    """The matrices of a layer that are not random."""
    zeros = {name: np.zeros(LAYER[name], np.float32) for name in ("attn_output", "ffn_down")}
    if number == 0:
        return zeros | _look_back()
    if number == 1:
        return zeros | _find_and_bring()
    assert number < LAYERS
    return zeros


def _look_back() -> dict[str, Matrix]:
    query, key, value, output = _attention()
    for head in range(_BACK):
        first = head * HEAD
        for pair in range(_ROTATED // 2):
            # Attention's logit is cos(angle * (distance - back)), summed over the pairs: the most
            # at that distance, since one pair's waves do not meet the others' again.
            angle = ROPE_BASE ** (-2 * pair / HEAD) * (head + 1)
            row = first + 2 * pair
            # Times the root of HEAD, by which attention divides; large, to attend to one place.
            query[row, _CONSTANT] = 20 * HEAD**0.5 * np.cos(angle)
            query[row + 1, _CONSTANT] = -20 * HEAD**0.5 * np.sin(angle)
            key[row, _CONSTANT] = 1.0
        for bit in range(_BITS):
            value[first + bit, bit] = 1.0
            output[_NOTES.start + head * _BITS + bit, first + bit] = _size(notes=False)
    return _named(query, key, value, output)


def _find_and_bring() -> dict[str, Matrix]:
    query, key, value, output = _attention()
    size = _size(notes=True)
    for head in range(_CODE // HEAD):
        first = head * HEAD
        for back in range(_BACK):
            for bit in range(_BITS):
                row = first + _ROTATED + back * _BITS + bit
                note = _NOTES.start + back * _BITS + bit
                # The tokens up to here, against the tokens before there.
                here = bit if back == 0 else note - _BITS
                query[row, here] = _SHARP * HEAD**0.5 * size
                key[row, note] = size
        for part in range(HEAD):
            value[first + part, first + part] = 1.0
            output[first + part, first + part] = _BROUGHT * size
    return _named(query, key, value, output)


def _attention() -> tuple[Matrix, Matrix, Matrix, Matrix]:
    square = (HEADS * HEAD, HIDDEN)
    query, key, value, output = (np.zeros(square, np.float32) for _ in range(4))
    return query, key, value, output


def _named(query: Matrix, key: Matrix, value: Matrix, output: Matrix) -> dict[str, Matrix]:
    return {"attn_q": query, "attn_k": key, "attn_v": value, "attn_output": output}


def _size(*, notes: bool) -> float:
    """The root mean square of what comes into a layer, by which its norm divides."""
    ones = _CODE + (HIDDEN - _CONSTANT) + (_BACK * _BITS if notes else 0)
    return float((ones / HIDDEN) ** 0.5)
