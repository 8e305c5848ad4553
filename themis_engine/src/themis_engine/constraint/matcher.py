"""One sequence's walk through a language, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from themis_core.errors import BackendFailed, InvalidRequest, ThemisError
from themis_engine.constraint.vocabulary import Vocabulary


class Grammar:
    """A compiled constraint. Safe to use from several threads at once.

    `build` makes a new walk at the beginning of the language; it is called once here, and again
    only where the walks that share a lexer have worn it out.
    """

    def __init__(
        self,
        kind: str,
        vocabulary: Vocabulary,
        build: Callable[[], LLMatcher],
        check: Callable[[str], str | None],
    ) -> None:
        self.kind = kind
        self.vocabulary = vocabulary
        self.build = build
        self._pristine = build()  # Never advanced: every sequence walks a copy.
        self._check = check

    def matcher(self) -> Matcher:
        """A walk from the beginning, for one sequence."""
        return Matcher(self, self._pristine.deep_copy())

    def renew(self) -> None:
        """Let new sequences begin with a lexer of their own."""
        self._pristine = self.build()

    def check(self, text: str) -> str | None:
        """What is wrong with a finished text, found without the grammar; None if nothing is."""
        try:
            return self._check(text)
        except RecursionError:
            return "The text is nested too deeply to be checked."


class Matcher:
    """Where in the language a text stands. Used by one thread at a time.

    Errors: every method may raise `InvalidRequest` where the grammar is too ambiguous or too large
    for the limits of one step, and `BackendFailed` where the grammar
    leads nowhere; then this sequence cannot go on, and others are not concerned.
    """

    def __init__(self, grammar: Grammar, walk: LLMatcher) -> None:
        self._grammar = grammar
        self._vocabulary = vocabulary = grammar.vocabulary
        self._walk = walk
        self._tokens: list[int] = []
        self._bits = np.zeros(vocabulary.words, np.int32)
        self._forbidden: npt.NDArray[np.bool_] | None = None
        self._accepting: bool | None = None
        self._ended = False
        self._failure: ThemisError | None = None

    def mask(self, row: npt.NDArray[np.float32]) -> None:
        """Set the logits of all tokens that are not allowed next to -inf.

        End tokens are allowed exactly when the text may end here.
        """
        self.prepare()
        assert self._forbidden is not None
        known = len(self._forbidden)
        np.copyto(row[:known], -np.inf, where=self._forbidden)
        row[known:] = -np.inf

    def prepare(self) -> None:
        """Compute the mask of the next token now; `mask` then only applies it.

        Most of the work is done without the interpreter's lock.
        """
        self._raise_error()
        if self._forbidden is None:
            self._forbidden = self._compute()

    def _compute(self) -> npt.NDArray[np.bool_]:
        self._fill()
        if self._walk.is_error():
            self._recover()
            self._fill()
            self._give_up_on_error()
        may_end = self.may_end
        size = self._vocabulary.size
        allowed = np.unpackbits(self._bits.view(np.uint8), count=size, bitorder="little")
        if self._ended:
            allowed[:] = 0
        # Where llguidance fails or is finished it allows the end tokens, so they are set here.
        allowed[self._vocabulary.end_tokens] = may_end
        if not may_end and not allowed.any():
            raise BackendFailed(
                "The constraint leads nowhere: no token may follow, and the text may not end.",
                field="constraint",
            )
        forbidden: npt.NDArray[np.bool_] = allowed == 0
        return forbidden

    def _give_up_on_error(self) -> None:
        """After a recovery: the text itself is beyond the limits."""
        if self._walk.is_error():
            self._failure = _error(self._walk)
            raise self._failure

    def _fill(self) -> None:
        self._walk.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)

    def _recover(self) -> None:
        """Walk again, alone.

        Copies of one llguidance matcher share their lexer, its limits and its errors. If this text
        by itself is within the limits, another one wore the lexer out, or many together did.
        """
        self._grammar.renew()
        self._walk = self._grammar.build()
        self._walk.try_consume_tokens(self._tokens)
        self._accepting = None
        self._give_up_on_error()

    def advance(self, token: int) -> None:
        """Append a token. Raises `BackendFailed` if it is not allowed here."""
        self._raise_error()
        if token in self._vocabulary.tokens_that_end:
            allowed = self.may_end
            self._ended = self._ended or allowed
        else:
            allowed = not self._ended and self._consume(token)
            self._tokens += [token] if allowed else []
        if not allowed:
            raise BackendFailed(
                f"Token {token} does not fit the constraint here.", field="constraint"
            )
        self._forbidden = None
        self._accepting = None

    def _consume(self, token: int) -> bool:
        if self._walk.try_consume_tokens([token]) == 1:
            return True
        if not self._walk.is_error():
            return False
        self._recover()
        fits = self._walk.try_consume_tokens([token]) == 1
        self._give_up_on_error()
        return fits

    @property
    def may_end(self) -> bool:
        """True if the text so far is in the language."""
        if self._accepting is None:
            if not self._ended and self._walk.is_error():
                self._recover()
            self._accepting = self._ended or self._walk.is_accepting()
        return self._accepting

    @property
    def must_end(self) -> bool:
        """True if nothing but an end can follow."""
        if self._ended:
            return True
        if not self.may_end:
            return False
        if self._walk.is_stopped():
            return True
        self.prepare()
        assert self._forbidden is not None
        allowed = len(self._forbidden) - np.count_nonzero(self._forbidden)
        return bool(allowed == len(self._vocabulary.end_tokens))

    def forced(self, limit: int) -> list[int]:
        """Tokens that must follow, cut as the tokenizer would cut them; at most `limit`."""
        if self._ended or limit <= 0 or self._failure is not None:
            return []
        tokens = self._walk.compute_ff_tokens()
        if self._walk.is_error():
            self._recover()
            tokens = self._walk.compute_ff_tokens()
            self._give_up_on_error()
        return tokens[:limit]

    def accepted(self, tokens: Sequence[int]) -> int:
        """How many of the tokens, from the first on, would be allowed in a row, by their bytes.

        Where the text is forced, `mask` leaves only the token that the tokenizer itself would use;
        others for the same bytes count as accepted here.
        """
        ends = self._vocabulary.tokens_that_end
        plain = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        if self._ended:
            count = 0
        else:
            count = self._walk.validate_tokens(list(tokens[:plain])) if plain else 0
        if count < plain or plain == len(tokens):
            return count
        # An end stands behind: look from there, on a copy, whether the text may end.
        ahead = self
        if plain:
            ahead = Matcher(self._grammar, self._walk.deep_copy())
            ahead._walk.try_consume_tokens(list(tokens[:plain]))
        behind = tokens[plain:]
        run = next((i for i, token in enumerate(behind) if token not in ends), len(behind))
        return plain + run if ahead.may_end else plain

    def _raise_error(self) -> None:
        if self._failure is not None:
            raise self._failure


def _error(walk: LLMatcher) -> ThemisError:
    """Only its limits bring llguidance into an error where every token came through a mask.

    A retry would end the same way, so the request is at fault.
    """
    reason = walk.get_error().strip().splitlines()
    return InvalidRequest(
        f"The constraint cannot be followed any further: {reason[0] if reason else '?'}",
        field="constraint",
        remedy="Make the grammar less ambiguous, or its repetitions shorter.",
    )
