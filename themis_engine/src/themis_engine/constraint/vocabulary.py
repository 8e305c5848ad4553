"""The tokens of a model as llguidance wants them: a trie of bytes, built once per model."""

from __future__ import annotations

from llguidance import LLTokenizer

from themis_engine.byte_tokenizer import ByteTokenizer
from themis_engine.runner import Tokenizer

_CANONICAL = 400


class Vocabulary:
    """What llguidance asks of a tokenizer, over our `Tokenizer`; `ll` is llguidance's own.

    End tokens stand for no bytes here, whatever the tokenizer says: they are allowed where a text
    may end and nowhere else. Without any end token, an id beyond the vocabulary stands in.
    """

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self._tokenizer = tokenizer
        self.size = vocab_size
        self.end_tokens = sorted(t for t in tokenizer.end_tokens if 0 <= t < vocab_size)
        self.tokens_that_end = frozenset(self.end_tokens)
        self.tokens = [
            b"" if t in self.tokens_that_end else tokenizer.token_bytes(t)
            for t in range(vocab_size)
        ]
        ids = self.end_tokens
        if not ids:
            ids = [vocab_size]
            self.tokens.append(b"")
        self.eos_token_id = ids[0]
        self.special_token_ids = ids
        self._start = tokenizer.encode("", parse_special=False)
        self.ll = LLTokenizer(self, eos_token=ids)  # type: ignore[arg-type]

    @property
    def words(self) -> int:
        """Length of a mask of one bit for each token, in words of 32 bits."""
        return (len(self.tokens) + 31) // 32

    def __call__(self, text: str | bytes) -> list[int]:
        """Token ids of a text in the middle of another: without start tokens or added spaces.

        llguidance asks for all the text that is forced, again at each step, and uses its first
        tokens. Those behind are cut by the trie, which is fast, and right when their turn comes.
        """
        text = text if isinstance(text, str) else text.decode()
        if len(text) > _CANONICAL:
            return self(text[:_CANONICAL]) + self.ll.greedy_tokenize(text[_CANONICAL:])
        for lead in ("", "\n"):  # Some tokenizers add a space, but only where a text begins.
            ids = self._tokenizer.encode(lead + text, parse_special=False)
            ids = ids[len(self._start) :] if ids[: len(self._start)] == self._start else ids
            while (
                ids and lead and (piece := self.tokens[ids[0]]) and lead.startswith(piece.decode())
            ):
                ids, lead = ids[1:], lead[len(piece) :]
            if not lead and b"".join(self.tokens[i] for i in ids) == text.encode():
                return ids
        return self.ll.greedy_tokenize(text)


_bytes: list[Vocabulary] = []


def byte_vocabulary() -> Vocabulary:
    """A vocabulary of single bytes, for checking texts: it cuts them unlike any model does."""
    if not _bytes:
        _bytes.append(Vocabulary(ByteTokenizer(), ByteTokenizer.VOCAB_SIZE))
    return _bytes[0]
