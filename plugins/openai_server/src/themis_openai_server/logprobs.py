"""Log-probabilities in the two shapes that OpenAI gives them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from themis_core.messages import TokenLogprob


class TopLogprob(msgspec.Struct, frozen=True):
    """An alternative, in a chat."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(msgspec.Struct, frozen=True):
    """A token, in a chat."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """The `logprobs` of a chat choice."""

    content: list[ChatToken]
    refusal: None = None


class TextLogprobs(msgspec.Struct, frozen=True):
    """The `logprobs` of a completion choice; all lists are parallel."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


def chat_logprobs(entries: Iterable[TokenLogprob]) -> ChatLogprobs:
    """Bytes that are no whole character become U+FFFD in `token`; `bytes` is always exact."""
    return ChatLogprobs(
        [
            ChatToken(
                _replaced(entry.token),
                _finite(entry.logprob),
                list(entry.token),
                [TopLogprob(_replaced(t), _finite(lp), list(t)) for _, t, lp in entry.top],
            )
            for entry in entries
        ]
    )


class TextOffsets:
    """Makes completion logprobs piece by piece, counting characters through one choice."""

    def __init__(self) -> None:
        self._begun = 0  # Characters whose first byte has been seen.

    def logprobs(self, entries: Iterable[TokenLogprob]) -> TextLogprobs:
        """The next tokens of the choice."""
        result = TextLogprobs([], [], [], [])
        for entry in entries:
            result.tokens.append(_escaped(entry.token))
            result.token_logprobs.append(_finite(entry.logprob))
            result.top_logprobs.append({_escaped(t): _finite(lp) for _, t, lp in entry.top})
            inside = entry.token[:1] != b"" and _continues(entry.token[0])
            result.text_offset.append(max(0, self._begun - inside))
            self._begun += sum(not _continues(byte) for byte in entry.token)
        return result


def _continues(byte: int) -> bool:
    """True for every byte of a UTF-8 character but its first."""
    return byte & 0xC0 == 0x80


def _replaced(token: bytes) -> str:
    return token.decode("utf-8", "replace")


def _escaped(token: bytes) -> str:
    """Tokens are keys here, so pieces of characters must stay distinct: OpenAI writes bytes:\\x…"""
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _finite(logprob: float) -> float:
    """JSON has no minus infinity; OpenAI writes -9999 for "never"."""
    return max(logprob, -9999.0)
