"""Carrying a request on where its worker died: what its caller has, and what is asked next.

The next worker is asked for the same answer again, and what the caller has already is taken off
its front, after comparing it: an answer that comes out differently is an error, never a splice.
A backend that takes `resume_token_ids` gets the tokens sent so far along with the request, and
computes them like a prompt instead of one by one; at least the last is always generated anew.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator

import msgspec

from themis_core.errors import BackendFailed
from themis_core.messages import (
    Delta,
    Done,
    Finished,
    GenerateEvent,
    GenerateRequest,
    ModelInfo,
    Started,
    Usage,
)

_RESUME = "resume_token_ids"

Cut = tuple[int, int, int]
_START: Cut = (0, 0, 0)


class Given:
    """What the caller has of one choice. `cuts` are (tokens, characters of text, of reasoning)
    after each delta.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.reasoning = ""
        self.tool_calls = False
        self.cuts: list[Cut] = [_START]
        self.finished = False

    def add(self, delta: Delta) -> None:
        """The caller gets a delta."""
        self.tokens += delta.token_ids
        self.text += delta.text
        self.reasoning += delta.reasoning
        self.tool_calls = self.tool_calls or bool(delta.tool_calls)
        self.cuts.append((len(self.tokens), len(self.text), len(self.reasoning)))


class Journal:
    """One request and all that its caller has been given."""

    def __init__(self, request: GenerateRequest, info: ModelInfo) -> None:
        fields = info.capabilities.request_fields
        params = request.sampling
        if not params.greedy and params.seed is None and "sampling.seed" in fields:
            # Drawn here, so that the next worker draws the same numbers.
            params = msgspec.structs.replace(params, seed=secrets.randbits(64))
            request = msgspec.structs.replace(request, sampling=params)
        self.request = request
        self.started: Started | None = None
        self.choices: dict[int, Given] = {}
        self.count = 0

    @property
    def finished(self) -> bool:
        """True if only `Done` is missing."""
        ended = [given.finished for given in self.choices.values()]
        return len(ended) == self.request.sampling.n and all(ended)

    def note(self, event: GenerateEvent) -> None:
        """The caller gets an event."""
        self.count += 1
        if isinstance(event, Started):
            self.started = event
        elif isinstance(event, Delta):
            self.choices.setdefault(event.index, Given()).add(event)
        elif isinstance(event, Finished):
            self.choices.setdefault(event.index, Given()).finished = True

    def done(self) -> Done:
        """The last event, for an answer of which nothing else is missing."""
        tokens = sum(len(given.tokens) for given in self.choices.values())
        prompt = self.started.prompt_tokens if self.started else 0
        cached = self.started.cached_tokens if self.started else 0
        used = Usage(prompt_tokens=prompt, completion_tokens=tokens, cached_tokens=cached)
        return Done(usage=used)

    def continuation(self, info: ModelInfo, remaining: float | None) -> Continuation:
        """What to ask of the next worker. Raises `BackendFailed` if it could not be exact."""
        request = msgspec.structs.replace(self.request, timeout=remaining)
        if not self.choices:
            return Continuation(self, request, _START)
        if not request.sampling.greedy and request.sampling.seed is None:
            raise _inexact("its model takes no seed")
        if _RESUME in info.capabilities.request_fields and request.sampling.n == 1:
            given = self.choices[0]
            most = max(cut[0] for cut in given.cuts if cut[0] < max(1, len(given.tokens)))
            cut = next(cut for cut in given.cuts if cut[0] == most)
            ids = (*request.resume_token_ids, *given.tokens[: cut[0]])
            again = msgspec.structs.replace(request, resume_token_ids=ids)
            return Continuation(self, again, cut)
        if any(given.tool_calls for given in self.choices.values()):
            raise _inexact("it has begun to call a tool")  # Whose id would be another one.
        return Continuation(self, request, _START)


class Continuation:
    """A request to the next worker, and how its events become those that the caller lacks."""

    def __init__(self, journal: Journal, request: GenerateRequest, cut: Cut) -> None:
        self.request = request
        self._journal = journal
        self._rest = {index: _Rest(given, cut) for index, given in journal.choices.items()}

    def pass_on(self, event: GenerateEvent) -> Iterator[GenerateEvent]:
        """What of an event is new. Raises `BackendFailed` if the answer is not the same."""
        if isinstance(event, Started):
            if self._journal.started is None:
                yield event
        elif isinstance(event, Delta):
            rest = self._rest.get(event.index)
            if rest is None:
                yield event
            else:
                yield from rest.take(event)
        elif isinstance(event, Finished):
            rest = self._rest.get(event.index)
            if rest is not None and rest.open:
                raise _different()
            if not self._journal.choices.get(event.index, Given()).finished:
                yield event
        else:
            yield event


class _Rest:
    """What is still to come again of one choice before anything new does."""

    def __init__(self, given: Given, cut: Cut) -> None:
        tokens, characters, thoughts = cut
        self._tokens = given.tokens[tokens:]
        self._text = given.text[characters:]
        self._reasoning = given.reasoning[thoughts:]

    @property
    def open(self) -> bool:
        """True if something has not come again yet."""
        return bool(self._tokens or self._text or self._reasoning)

    def take(self, delta: Delta) -> Iterable[Delta]:
        if not self.open:
            return (delta,)
        again = min(len(delta.token_ids), len(self._tokens))
        if list(delta.token_ids[:again]) != self._tokens[:again]:
            raise _different()
        del self._tokens[:again]
        text, self._text = _without(delta.text, self._text)
        reasoning, self._reasoning = _without(delta.reasoning, self._reasoning)
        ids = delta.token_ids[again:]
        # A call's piece comes with the token that completes it: both were there, or neither.
        calls = () if again and not ids else delta.tool_calls
        if not (ids or text or reasoning or calls):
            return ()
        return (
            msgspec.structs.replace(
                delta,
                text=text,
                reasoning=reasoning,
                token_ids=ids,
                logprobs=delta.logprobs[again:],
                tool_calls=calls,
            ),
        )


def _without(text: str, known: str) -> tuple[str, str]:
    """What of `text` is new, and what of `known` has not come again yet."""
    length = min(len(text), len(known))
    if text[:length] != known[:length]:
        raise _different()
    return text[length:], known[length:]


def _different() -> BackendFailed:
    return BackendFailed(
        "The worker died, and on the next one the answer came out differently.",
        remedy="Repeat the request.",
    )


def _inexact(why: str) -> BackendFailed:
    return BackendFailed(
        f"The worker died, and the request cannot be continued exactly: {why}.",
        remedy="Repeat the request.",
    )
