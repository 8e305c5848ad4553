"""What the kit of validators does with checks of the output."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from themis_core.contracts import OutputCheck, Validator
from themis_core.errors import RequestRejected
from themis_core.messages import GenerateRequest


def plain_request() -> GenerateRequest:
    """A request whose answers are judged."""
    return GenerateRequest(prompt="hi", request_id="0")


def _finished(check: OutputCheck, sent: str) -> tuple[bool, str]:
    try:
        return True, sent + check.finish()
    except RequestRejected:
        return False, sent


def output(
    validator: Validator, request: GenerateRequest, pieces: Iterable[str]
) -> tuple[bool, str]:
    """Accepted or not, and what was sent of a text in pieces."""
    check = validator.check_output(request)
    text = ""
    if check is None:
        return True, "".join(pieces)
    for piece in pieces:
        try:
            text += check.push(piece)
        except RequestRejected as error:
            if not str(error):
                pytest.fail("a refusal has no reason")
            return False, text
    return _finished(check, text)


def accepts(validator: Validator, text: str) -> bool:
    """The verdict on a whole text."""
    return output(validator, plain_request(), [text])[0]


def interleaved(
    validator: Validator, request: GenerateRequest, texts: list[str]
) -> list[tuple[bool, str]]:
    """The same for several texts at once, a character of each in turn."""
    checks = [validator.check_output(request) for _ in texts]
    sent = [""] * len(texts)
    refused = [False] * len(texts)
    for place in range(max(map(len, texts))):
        for i, (check, text) in enumerate(zip(checks, texts, strict=True)):
            assert check is not None
            if place < len(text) and not refused[i]:
                try:
                    sent[i] += check.push(text[place])
                except RequestRejected:
                    refused[i] = True
    ends = []
    for check, text, bad in zip(checks, sent, refused, strict=True):
        assert check is not None
        ends.append((False, text) if bad else _finished(check, text))
    return ends
