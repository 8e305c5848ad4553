"""From tokens to events, on the event loop's side: text, reasoning, tool calls, stop strings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from themis_core.errors import BackendFailed, ThemisError
from themis_core.messages import (
    AdapterWeight,
    Delta,
    Done,
    Finished,
    FinishReason,
    GenerateEvent,
    GenerateRequest,
    Started,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from themis_engine.crossing import Begun, Ended, Item, Tokens
from themis_engine.runner import Tokenizer
from themis_engine.sampler import Sampled
from themis_engine.text import TextStream


class Piece(Protocol):
    """What a parser makes of some text."""

    @property
    def text(self) -> str: ...
    @property
    def reasoning(self) -> str: ...
    @property
    def tool_calls(self) -> tuple[ToolCallDelta, ...]: ...


class Parser(Protocol):
    """Separates answer, reasoning and calls; see `themis_engine.tools`."""

    @property
    def markers(self) -> Mapping[int, str]: ...
    @property
    def called(self) -> bool: ...
    def push(self, text: str) -> Piece: ...
    def finish(self) -> Piece: ...


class Check(Protocol):
    """Judges a complete output; see `themis_engine.constraint.Grammar`."""

    def check(self, text: str) -> str | None: ...


class ChoiceOutput:
    """One choice. After `stopped`, no token of it counts any more."""

    def __init__(
        self,
        index: int,
        request: GenerateRequest,
        tokenizer: Tokenizer,
        parser: Parser | None,
        check: Check | None,
    ) -> None:
        self._index = index
        self._tokenizer = tokenizer
        self._stream = TextStream(request.sampling.stop)
        self._logprobs = request.sampling.logprobs is not None
        self._parser = parser
        self._check = check
        self._raw: list[str] = []
        self.tokens = 0
        self.stopped = False
        self.matched_text = False
        # What was generated before this request took over has been sent by another one.
        for token in request.resume_token_ids if index == 0 else ():
            self.tokens += 1
            self._piece(self._stream.push(self._bytes(token)))

    def take(self, new: Tokens) -> Iterator[GenerateEvent]:
        """The events of new tokens. Raises `BackendFailed` for an answer that breaks its rules."""
        text, logprobs, ids = "", [], []
        last = len(new.sampled) - 1
        for i, sampled in enumerate(new.sampled):
            ids.append(sampled.token)
            if self._logprobs:
                logprobs.append(self._logprob(sampled))
            if not (i == last and new.ended is not None and new.ended.silent):
                text += self._stream.push(self._bytes(sampled.token))
            if self._stream.matched is not None:
                break
        self.tokens += len(ids)
        ended = new.ended if self._stream.matched is None else None
        if ended is not None:
            text += self._stream.finish()
        finished = self._finished(ended)
        delta = self._delta(text, tuple(ids), tuple(logprobs), ends=finished is not None)
        yield delta
        if finished is not None:
            self.stopped = True
            self._judge(finished)
            yield self._with_reason(finished)

    def _finished(self, ended: Ended | None) -> Finished | None:
        if self._stream.matched is not None:
            self.matched_text = ended is None
            return Finished(index=self._index, reason="stop", matched=self._stream.matched)
        if ended is None:
            return None
        reason: FinishReason = "length" if ended.at_limit else "stop"
        return Finished(index=self._index, reason=reason, matched=ended.matched)

    def _with_reason(self, finished: Finished) -> Finished:
        if self._parser is None or not self._parser.called or finished.reason == "length":
            return finished
        return Finished(index=finished.index, reason="tool_calls", matched=finished.matched)

    def _delta(
        self, text: str, ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...], *, ends: bool
    ) -> Delta:
        if self._parser is None:
            self._piece(text)
            return Delta(index=self._index, text=text, token_ids=ids, logprobs=logprobs)
        pieces = [self._piece(text)]
        if ends:
            pieces.append(self._parser.finish())
        found = [piece for piece in pieces if piece is not None]
        return Delta(
            index=self._index,
            text="".join(piece.text for piece in found),
            reasoning="".join(piece.reasoning for piece in found),
            tool_calls=tuple(call for piece in found for call in piece.tool_calls),
            token_ids=ids,
            logprobs=logprobs,
        )

    def _piece(self, text: str) -> Piece | None:
        if self._check is not None:
            self._raw.append(text)
        return self._parser.push(text) if self._parser is not None else None

    def _judge(self, finished: Finished) -> None:
        """A constraint was applied to each token; the whole is checked by other means."""
        if self._check is None or finished.reason == "length":
            return
        wrong = self._check.check("".join(self._raw))
        if wrong is not None:
            ended = f" after the stop {finished.matched!r}" if finished.matched is not None else ""
            raise BackendFailed(f"The output{ended} does not obey its constraint: {wrong}")

    def _bytes(self, token: int) -> bytes:
        if self._parser is not None:
            marker = self._parser.markers.get(token)
            if marker is not None:
                return marker.encode()
        return self._tokenizer.token_bytes(token)

    def _logprob(self, sampled: Sampled) -> TokenLogprob:
        piece = self._tokenizer.token_bytes
        return TokenLogprob(
            token_id=sampled.token,
            token=piece(sampled.token),
            logprob=sampled.logprob or 0.0,
            top=tuple((token, piece(token), value) for token, value in sampled.top),
        )


class Output:
    """All choices of a request, from what crosses to its events."""

    def __init__(
        self,
        prompt_tokens: int,
        choices: list[ChoiceOutput],
        chosen_adapters: tuple[AdapterWeight, ...] = (),
    ) -> None:
        self._prompt_tokens = prompt_tokens
        self._choices = choices
        self._adapters = chosen_adapters
        self._cached = 0
        self.done = False

    def take(self, items: list[Item]) -> tuple[list[GenerateEvent], ThemisError | None]:
        """The events of these items, and the error that follows them: theirs, or the output's."""
        events: list[GenerateEvent] = []
        try:
            # Not `extend`: those before an error count.
            for event in self._events(items):
                events.append(event)
        except ThemisError as error:
            return events, error
        return events, None

    def _events(self, items: list[Item]) -> Iterator[GenerateEvent]:
        for item in items:
            if isinstance(item, ThemisError):
                raise item
            if isinstance(item, Begun):
                self._cached = item.cached
                yield Started(
                    prompt_tokens=self._prompt_tokens,
                    cached_tokens=item.cached,
                    adapters=self._adapters,
                )
            elif not self._choices[item.index].stopped:
                yield from self._choices[item.index].take(item)
        if not self.done and all(choice.stopped for choice in self._choices):
            self.done = True
            yield Done(
                usage=Usage(
                    prompt_tokens=self._prompt_tokens,
                    completion_tokens=sum(choice.tokens for choice in self._choices),
                    cached_tokens=self._cached,
                )
            )

    def ended_by_text(self) -> list[int]:
        """The choices that a stop string has ended, which the engine cannot know; each once."""
        found = [i for i, choice in enumerate(self._choices) if choice.matched_text]
        for i in found:
            self._choices[i].matched_text = False
        return found
