"""One step of the token loop: propose, plan, forward, verify and sample."""

from __future__ import annotations

import copy
import heapq
import itertools
import logging
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from themis_core.errors import BackendFailed, DeadlineExceeded, ThemisError
from themis_core.messages import BackendStats
from themis_engine.crossing import Begun, Crossing, Ended, Tokens
from themis_engine.embedding import EmbeddingJob, Vector
from themis_engine.histogram import SECONDS, SIZES, Buckets
from themis_engine.kv import Copy, Free, Truncate
from themis_engine.kv.manager import adapters_of
from themis_engine.kv.store import PrefixStore
from themis_engine.runner import (
    EmbeddingRunner,
    InterruptibleRunner,
    Logits,
    ModelRunner,
    StepInterrupted,
)
from themis_engine.sampler import InvalidLogits, Rows, Sampled, Sampler
from themis_engine.scheduler import Part, Scheduler, Step
from themis_engine.sequence import Group, Sequence
from themis_engine.speculation import Speculation

_log = logging.getLogger("themis.engine")

# Tokens that a constraint forces, taken at once. Others wait for the step that computes them.
_MOST_FORCED = 32


@dataclass(slots=True)
class _Counters:
    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    steps: int = 0
    ttft: Buckets = field(default_factory=lambda: Buckets(SECONDS))
    tpot: Buckets = field(default_factory=lambda: Buckets(SECONDS))
    batch_sizes: Buckets = field(default_factory=lambda: Buckets(SIZES))


class Stepper:
    """Owns the sequences of one runner. Other threads may call `stats` and `abandon` only."""

    def __init__(
        self,
        runner: ModelRunner,
        crossing: Crossing,
        scheduler: Scheduler,
        speculation: Speculation | None = None,
        store: PrefixStore | None = None,
    ) -> None:
        self._runner = runner
        self._kv_capacity = runner.info.kv_capacity
        self._ragged = runner.info.ragged
        self._end_tokens = runner.tokenizer.end_tokens
        self._sampler = Sampler(self._end_tokens)
        self._scheduler = scheduler
        self._speculation = speculation
        self._store = store
        self._crossing = crossing
        self._counters = _Counters()
        self._interruptible = runner if isinstance(runner, InterruptibleRunner) else None
        self._computing: tuple[Group, ...] = ()  # Whose batch the runner is at.
        self._groups: dict[Group, None] = {}  # Those that somebody waits for, in order.
        self._deadlines: list[tuple[float, int, Group]] = []
        self._numbers = itertools.count()
        self._masks: ThreadPoolExecutor | None = None
        self._embeddings: deque[tuple[EmbeddingJob, Future[list[Vector]]]] = deque()

    @property
    def scheduler(self) -> Scheduler:
        """Who computes what."""
        return self._scheduler

    @property
    def idle(self) -> bool:
        """True if there is nothing to do."""
        return self._scheduler.idle and not self._embeddings

    def add(self, group: Group) -> None:
        """Take in a request; it begins as soon as there is room."""
        self._groups[group] = None
        self._counters.requests += 1
        self._counters.prompt_tokens += group.sequences[0].prompt_length
        if group.deadline is not None:
            heapq.heappush(self._deadlines, (group.deadline, next(self._numbers), group))
        for sequence in group.sequences:
            self._restore(sequence)
            self._scheduler.add(sequence)

    def cancel(self, group: Group) -> None:
        """Forget a request and free what it holds. Finished ones are ignored."""
        if not group.closed:
            self._counters.cancelled += 1
            self._close_all(group)
            self.apply()

    def abandon(self, group: Group) -> None:
        """From any thread, before `cancel` is asked for: a step that is for nobody ends early."""
        group.abandoned = True
        computing = self._computing
        if self._interruptible and computing and all(g.abandoned for g in computing):
            self._interruptible.interrupt()

    def finish(self, sequence: Sequence) -> None:
        """A choice was found to be complete, by its text. Finished ones are ignored."""
        if not sequence.closed:
            self._finish(sequence)
            self.apply()

    def embed(self, job: EmbeddingJob, future: Future[list[Vector]]) -> None:
        """Compute vectors, a batch between two steps; cancelling the future stops it."""
        self._embeddings.append((job, future))

    def forget_adapter(self, name: str) -> None:
        """Give up what was computed with an adapter that nobody uses any more."""
        self._scheduler.kv.forget(adapters_of(name))
        if self._store is not None:
            self._store.forget(adapters_of(name))
        self.apply()

    def fail_all(self, error: ThemisError) -> None:
        """End every request with this error. The runner, perhaps broken, is not called."""
        # Not through the scheduler: it may be what has failed.
        for group in self._groups:
            self._report(group, error)
        self._groups.clear()
        while self._embeddings:
            future = self._embeddings.popleft()[1]
            if future.set_running_or_notify_cancel():
                future.set_exception(copy.copy(error))

    def give_up_prefixes(self) -> None:
        """Before the end: what is kept in the KV cache goes to the store, if there is one."""
        self._scheduler.kv.clear()
        self.apply()

    def close(self) -> None:
        """End the threads and models of its own; the runner stays open."""
        if self._store is not None:
            self._store.close()
        if self._masks is not None:
            self._masks.shutdown()
        if self._speculation is not None:
            self._speculation.close()

    def step(self) -> None:
        """Compute one batch. Errors of the runner fail the requests of that batch, no others."""
        self._expire()
        self._embed()
        self._force()
        if self._speculation is not None:
            self._speculation.propose(self._scheduler.decoding())
        step = self._scheduler.plan()
        self.apply()
        if step is None:
            return
        self._announce(step)
        try:
            logits = self._forward(step)
        # Whatever a runner raises must reach those who wait for its answer.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            if isinstance(error, StepInterrupted) and any(
                part.sequence.group.abandoned for part in step.parts
            ):
                return  # They are cancelled before the next step; others are computed again there.
            _log.warning("A step of %d sequences failed.", len(step.parts), exc_info=True)
            for part in step.parts:
                self._fail(part.sequence.group, _translate(error))
        else:
            self._scheduler.commit(step)
            rows = self._sampler.rows(logits)
            for part in step.parts:
                # A choice of the same request can have failed a moment ago, and this with it.
                if part.first_row >= 0 and not part.sequence.closed:
                    self._advance(part, rows)
        self.apply()

    def stats(self) -> BackendStats:
        """Counters and gauges; the numbers can be from two neighbouring steps."""
        c, kv = self._counters, self._scheduler.kv
        running = {id(sequence.group) for sequence in list(self._scheduler.running)}
        waiting = {id(sequence.group) for sequence in self._scheduler.waiting}
        used = min(kv.used_by_running, self._kv_capacity)
        return BackendStats(
            requests=c.requests,
            finished=c.finished,
            cancelled=c.cancelled,
            failed=c.failed,
            running=len(running),
            waiting=len(waiting - running),
            prompt_tokens=c.prompt_tokens,
            cached_tokens=c.cached_tokens,
            completion_tokens=c.completion_tokens,
            steps=c.steps,
            preemptions=self._scheduler.preemptions,
            drafted_tokens=0 if self._speculation is None else self._speculation.drafted,
            accepted_tokens=0 if self._speculation is None else self._speculation.accepted,
            kv_used=used,
            kv_cached=max(0, kv.used - used),
            kv_capacity=self._kv_capacity,
            ttft=c.ttft.snapshot(),
            tpot=c.tpot.snapshot(),
            batch_sizes=c.batch_sizes.snapshot(),
        )

    def apply(self) -> None:
        """Have the runner do what was decided about its KV cache, in order."""
        while operations := self._scheduler.kv.take_operations():
            for operation in operations:
                match operation:
                    case Copy(source, target, length):
                        try:
                            self._runner.copy(source, target, length)
                        except ThemisError as error:
                            self._fail_slot(target, error)
                    case Truncate(slot, length):
                        if not self._runner.truncate(slot, length):
                            message = "The model cannot be truncated, against its word."
                            self._fail_slot(slot, BackendFailed(message))
                    case Free(slot, key, tokens):
                        if self._store is not None and key is not None:
                            self._store.save(self._runner, slot, key, tokens)
                        self._runner.free(slot)

    # --- one step --------------------------------------------------------------------------------

    def _force(self) -> None:
        """Append what constraints leave no choice about; it is computed with the next step.

        Each of these tokens saves a step, and its logits. Where log-probabilities are asked for,
        or many short pieces would each cost a pass of the model, it goes token by token instead.
        """
        if not self._ragged and len(self._scheduler.running) > 1:
            return
        for sequence in self._scheduler.decoding():
            if sequence.matcher is None or sequence.sampling.logprobs is not None:
                continue
            try:
                tokens = sequence.matcher.forced(_MOST_FORCED)
            except ThemisError as error:
                self._fail(sequence.group, error)
                continue
            taken: list[Sampled] = []
            ended: Ended | None = None
            for token in tokens:
                taken.append(Sampled(token))
                sequence.tokens.append(token)
                ended = self._ends(sequence, token)
                if ended is not None:
                    break
            if taken:
                self._deliver(sequence, taken, ended)

    def _announce(self, step: Step) -> None:
        for part in step.parts:
            sequence, group = part.sequence, part.sequence.group
            if not group.started:
                group.started = True
                group.cached = min(sequence.computed, sequence.prompt_length)
                self._counters.cached_tokens += group.cached
                self._crossing.post(group.stream, Begun(group.cached))

    def _forward(self, step: Step) -> Logits:
        masks = self._prepare_masks(step)
        began = time.perf_counter()
        self._computing = tuple(dict.fromkeys(part.sequence.group for part in step.parts))
        try:
            # Checked after `_computing` is set: `abandon` sets and looks the other way round.
            if self._interruptible and all(group.abandoned for group in self._computing):
                raise StepInterrupted
            logits = self._runner.forward(step.batch)
        finally:
            self._computing = ()
            if masks is not None:
                masks.result()
        seconds = time.perf_counter() - began
        self._scheduler.pace.observe(len(step.batch.tokens), seconds)
        if self._speculation is not None and all(part.first_row >= 0 for part in step.parts):
            self._speculation.observe(len(step.batch.tokens), seconds)
        self._counters.steps += 1
        self._counters.batch_sizes.add(len(step.parts))
        return logits

    def _prepare_masks(self, step: Step) -> Future[None] | None:
        """Work out what the constraints allow next, on a thread, while the model computes."""
        matchers = [
            part.sequence.matcher
            for part in step.parts
            if part.first_row >= 0 and part.sequence.matcher is not None
        ]
        if not matchers:
            return None
        if self._masks is None:
            self._masks = ThreadPoolExecutor(1, thread_name_prefix="themis-masks")

        def prepare() -> None:
            for matcher in matchers:
                with suppress(ThemisError):  # Its own sequence hears of it when it is sampled.
                    matcher.prepare()

        return self._masks.submit(prepare)

    def _advance(self, part: Part, rows: Rows) -> None:
        """Sample after the last token and after each draft that is right, and end what must end."""
        sequence = part.sequence
        drafts, sequence.drafts = sequence.drafts[: part.drafted], []
        taken: list[Sampled] = []
        ended: Ended | None = None
        try:
            for row in range(part.drafted + 1):
                taken.append(rows.sample(part.first_row + row, sequence))
                token = taken[-1].token
                sequence.tokens.append(token)
                ended = self._ends(sequence, token)
                if ended is not None or row == part.drafted or token != drafts[row]:
                    break
        except InvalidLogits as error:
            message = f"The model gave no usable logits for the next token: {error}."
            self._fail(sequence.group, BackendFailed(message))
            return
        except ThemisError as error:
            self._fail(sequence.group, error)
            return
        if self._speculation is not None:
            self._speculation.verified(sequence, part.drafted, len(taken) - 1)
        self._scheduler.retract(sequence)
        self._deliver(sequence, taken, ended)

    def _ends(self, sequence: Sequence, token: int) -> Ended | None:
        """Whether the answer ends with this token."""
        params = sequence.sampling
        if token in params.stop_token_ids:
            return Ended(silent=True, matched=token)
        if token in self._end_tokens and not params.ignore_eos:
            return Ended(silent=True)
        if sequence.matcher is not None:
            sequence.matcher.advance(token)
            if sequence.matcher.must_end:
                return Ended()
        if sequence.generated >= sequence.limit:
            return Ended(at_limit=True)
        return None

    def _deliver(self, sequence: Sequence, taken: list[Sampled], ended: Ended | None) -> None:
        group, now = sequence.group, time.monotonic()
        if not group.first_token:
            group.first_token = now
            self._counters.ttft.add(now - group.submitted)
        self._counters.completion_tokens += len(taken)
        self._crossing.post(group.stream, Tokens(sequence.index, taken, ended))
        if ended is not None:
            self._finish(sequence)

    def _embed(self) -> None:
        """Compute one batch of the oldest embedding job, if there is room for it."""
        if not self._embeddings:
            return
        job, future = self._embeddings[0]
        if future.cancelled():
            self._embeddings.popleft()
            return
        chosen = job.borrow(self._scheduler.kv)
        self.apply()
        if not chosen:
            return
        try:
            assert isinstance(self._runner, EmbeddingRunner)
            job.compute(self._runner, chosen)
        # Whatever a runner raises must reach those who wait for its answer.
        except Exception as error:  # noqa: BLE001
            self._embeddings.popleft()
            if future.set_running_or_notify_cancel():
                future.set_exception(_translate(error))
        else:
            if job.done:
                self._embeddings.popleft()
                if future.set_running_or_notify_cancel():
                    future.set_result(job.vectors)
        finally:
            job.give_back(self._scheduler.kv, chosen)
            self.apply()

    # --- the end of sequences --------------------------------------------------------------------

    def _finish(self, sequence: Sequence) -> None:
        group = sequence.group
        if sequence.generated > 1:
            seconds = time.monotonic() - group.first_token
            self._counters.tpot.add(seconds / (sequence.generated - 1))
        self._close(sequence)
        if all(other.closed for other in group.sequences):
            group.closed = True
            self._groups.pop(group, None)
            self._counters.finished += 1

    def _fail(self, group: Group, error: ThemisError) -> None:
        if group.closed:
            return
        self._report(group, error)
        self._close_all(group, keep=False)

    def _report(self, group: Group, error: ThemisError) -> None:
        self._counters.failed += 1
        # Each caller raises its own copy: a shared one would mix their tracebacks.
        own = copy.copy(error)
        own.__cause__ = error.__cause__
        self._crossing.post(group.stream, own)

    def _fail_slot(self, slot: int, error: ThemisError) -> None:
        for sequence in [s for s in self._scheduler.running if s.slot == slot]:
            self._fail(sequence.group, error)

    def _close_all(self, group: Group, *, keep: bool = True) -> None:
        group.closed = True
        self._groups.pop(group, None)
        for sequence in group.sequences:
            if not sequence.closed:
                self._close(sequence, keep=keep)

    def _close(self, sequence: Sequence, *, keep: bool = True) -> None:
        sequence.closed = True
        if self._speculation is not None:
            self._speculation.forget(sequence)
        self._scheduler.remove(sequence, keep=keep)

    def _expire(self) -> None:
        now = time.monotonic()
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][2].closed):
            group = heapq.heappop(self._deadlines)[2]
            message = f"The request was not finished within {group.request.timeout} seconds."
            self._fail(group, DeadlineExceeded(message, field="timeout"))

    def _restore(self, sequence: Sequence) -> None:
        """Bring a stored prefix back, if it is longer than what the KV cache has."""
        if self._store is None:
            return
        kv = self._scheduler.kv
        held = kv.look_up(sequence.key, sequence.tokens).planned
        found = self._store.find(sequence.key, sequence.tokens, longer_than=held)
        if found is None:
            return
        slot = kv.adopt(sequence.key, found.tokens)
        if slot is None:
            return
        self.apply()
        try:
            self._store.restore(self._runner, slot, found)
        except ThemisError as error:
            _log.warning("A stored prefix of %d tokens is lost: %s", len(found.tokens), error)
            kv.drop(slot)
            self.apply()


def _translate(error: BaseException) -> ThemisError:
    if isinstance(error, ThemisError):
        return error
    failure = BackendFailed(f"The model failed during a step: {error!r}.")
    failure.__cause__ = error
    return failure
