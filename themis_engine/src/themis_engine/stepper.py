"""One step of the token loop: plan, forward, sample, turn tokens into text and events."""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass

from themis_core.errors import BackendFailed, DeadlineExceeded, ThemisError
from themis_core.messages import (
    BackendStats,
    Delta,
    Done,
    Finished,
    Started,
    TokenLogprob,
    Usage,
)
from themis_engine.crossing import Crossing
from themis_engine.runner import ModelRunner
from themis_engine.sampler import InvalidLogits, Sampled, Sampler
from themis_engine.scheduler import Scheduler, Step
from themis_engine.sequence import Sequence

_log = logging.getLogger("themis.engine")


@dataclass(slots=True)
class _Counters:
    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    steps: int = 0


class Stepper:
    """Owns the sequences of one runner. Only `stats` may be called from other threads."""

    def __init__(self, runner: ModelRunner, crossing: Crossing, prefill_chunk: int) -> None:
        self._runner = runner
        self._kv_capacity = runner.info.kv_capacity
        self._tokenizer = runner.tokenizer
        self._end_tokens = self._tokenizer.end_tokens
        self._sampler = Sampler(self._end_tokens)
        self._scheduler = Scheduler(runner.info, prefill_chunk)
        self._crossing = crossing
        self._counters = _Counters()

    @property
    def idle(self) -> bool:
        """True if there is nothing to do."""
        return self._scheduler.idle

    def add(self, sequence: Sequence) -> None:
        """Take in a sequence; it begins as soon as there is room."""
        self._counters.requests += 1
        self._counters.prompt_tokens += sequence.prompt_length
        self._scheduler.add(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Forget a sequence and free what it holds. Finished ones are ignored."""
        if not sequence.closed:
            self._counters.cancelled += 1
            self._close(sequence)
            self._free_evicted()

    def fail_all(self, error: ThemisError) -> None:
        """End every sequence with this error. The runner, perhaps broken, is not called."""
        self._fail([*self._scheduler.running, *self._scheduler.waiting], error)

    def step(self) -> None:
        """Compute one batch. Errors of the runner fail the sequences of that batch, no others."""
        self._expire()
        step = self._scheduler.plan()
        self._free_evicted()
        if step is None:
            return
        self._announce(step)
        try:
            results = self._compute(step)
        # Whatever a runner raises must reach those who wait for its answer.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            _log.warning("A step of %d sequences failed.", len(step.parts), exc_info=True)
            self._fail([sequence for sequence, _ in step.parts], _translate(error))
        else:
            for sequence, result in zip(step.sampled, results, strict=True):
                self._advance(sequence, result)
        self._free_evicted()

    def stats(self) -> BackendStats:
        """Counters and gauges; the numbers can be from two neighbouring steps."""
        c = self._counters
        return BackendStats(
            requests=c.requests,
            finished=c.finished,
            cancelled=c.cancelled,
            failed=c.failed,
            running=len(self._scheduler.running),
            waiting=len(self._scheduler.waiting),
            prompt_tokens=c.prompt_tokens,
            completion_tokens=c.completion_tokens,
            steps=c.steps,
            kv_used=self._scheduler.kv_used,
            kv_capacity=self._kv_capacity,
        )

    def _announce(self, step: Step) -> None:
        for sequence, _ in step.parts:
            if not sequence.started:
                sequence.started = True
                started = Started(prompt_tokens=sequence.prompt_length)
                self._crossing.post(sequence.stream, started)

    def _compute(self, step: Step) -> list[Sampled | InvalidLogits]:
        logits = self._runner.forward(step.batch)
        self._counters.steps += 1
        self._scheduler.commit(step)
        return self._sampler.sample(logits, step.sampled) if step.sampled else []

    def _advance(self, sequence: Sequence, result: Sampled | InvalidLogits) -> None:
        """Add the sampled token to the answer, and end it where it must end."""
        if isinstance(result, InvalidLogits):
            message = f"The model gave no usable logits for the next token: {result}."
            self._fail([sequence], BackendFailed(message))
            return
        sequence.tokens.append(result.token)
        self._counters.completion_tokens += 1
        text, finished = self._take(sequence, result.token)
        logprobs = () if result.logprob is None else (self._logprob(result, result.logprob),)
        delta = Delta(text=text, token_ids=(result.token,), logprobs=logprobs)
        self._crossing.post(sequence.stream, delta)
        if finished is not None:
            self._finish(sequence, finished)

    def _take(self, sequence: Sequence, token: int) -> tuple[str, Finished | None]:
        """The text that a token releases, and whether the answer ends with it."""
        params, stream = sequence.sampling, sequence.text
        finished = None
        text = ""
        if token in params.stop_token_ids:
            finished = Finished(reason="stop", matched=token)
        elif token in self._end_tokens and not params.ignore_eos:
            finished = Finished(reason="stop")
        else:
            text = stream.push(self._tokenizer.token_bytes(token))
            if sequence.generated >= sequence.limit:
                finished = Finished(reason="length")
        if finished is not None:
            text += stream.finish()
        if stream.matched is not None:
            finished = Finished(reason="stop", matched=stream.matched)
        return text, finished

    def _finish(self, sequence: Sequence, finished: Finished) -> None:
        self._counters.finished += 1
        usage = Usage(prompt_tokens=sequence.prompt_length, completion_tokens=sequence.generated)
        self._crossing.post(sequence.stream, finished)
        self._crossing.post(sequence.stream, Done(usage=usage))
        self._close(sequence)

    def _fail(self, sequences: list[Sequence], error: ThemisError) -> None:
        for sequence in sequences:
            self._counters.failed += 1
            # Each caller raises its own copy: a shared one would mix their tracebacks.
            own = copy.copy(error)
            own.__cause__ = error.__cause__
            self._crossing.post(sequence.stream, own)
            self._close(sequence)

    def _close(self, sequence: Sequence) -> None:
        sequence.closed = True
        self._scheduler.remove(sequence)

    def _expire(self) -> None:
        now = time.monotonic()
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            if sequence.deadline is not None and now >= sequence.deadline:
                message = f"The request was not finished within {sequence.request.timeout} seconds."
                self._fail([sequence], DeadlineExceeded(message, field="timeout"))

    def _free_evicted(self) -> None:
        for slot in self._scheduler.take_evicted():
            self._runner.free(slot)

    def _logprob(self, result: Sampled, logprob: float) -> TokenLogprob:
        piece = self._tokenizer.token_bytes
        return TokenLogprob(
            token_id=result.token,
            token=piece(result.token),
            logprob=logprob,
            top=tuple((token, piece(token), value) for token, value in result.top),
        )


def _translate(error: BaseException) -> ThemisError:
    if isinstance(error, ThemisError):
        return error
    failure = BackendFailed(f"The model failed during a step: {error!r}.")
    failure.__cause__ = error
    return failure
