"""A suite that passes everything proves nothing: each fault here must fail the check named."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

import themis_tiny_model
from themis_core.errors import ThemisError
from themis_core.messages import (
    BackendStats,
    Delta,
    Done,
    Finished,
    GenerateEvent,
    GenerateRequest,
    SamplingParams,
    Started,
)
from themis_engine import EngineBackend
from themis_testkit import BackendConformance
from themis_testkit.reference.runner import ReferenceRunner

replace = msgspec.structs.replace
DEFAULTS = SamplingParams()


class Faithful(EngineBackend):
    """The reference; its subclasses have one fault each."""

    def __init__(self) -> None:
        load = partial(ReferenceRunner, themis_tiny_model.path("hf"), parallel=4)
        super().__init__(load, backend="faulty")

    def change_request(self, request: GenerateRequest) -> GenerateRequest:
        return request

    def change_event(self, event: GenerateEvent) -> list[GenerateEvent]:
        return [event]

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        async with aclosing(super().generate(self.change_request(request))) as events:
            async for event in events:
                for changed in self.change_event(event):
                    yield changed


class NoStarted(Faithful):
    def change_event(self, event: GenerateEvent) -> list[GenerateEvent]:
        return [] if isinstance(event, Started) else [event]


class FinishedAfterDone(Faithful):
    def change_event(self, event: GenerateEvent) -> list[GenerateEvent]:
        if isinstance(event, Finished):
            return []
        return [event, Finished(reason="length")] if isinstance(event, Done) else [event]


class WrongUsage(Faithful):
    def change_event(self, event: GenerateEvent) -> list[GenerateEvent]:
        if not isinstance(event, Done):
            return [event]
        return [Done(usage=replace(event.usage, completion_tokens=1))]


class SplitsCharacters(Faithful):
    def change_event(self, event: GenerateEvent) -> list[GenerateEvent]:
        if not isinstance(event, Delta) or self._running is None:
            return [event]
        tokenizer = self._running.runner.tokenizer
        pieces = [tokenizer.token_bytes(token) for token in event.token_ids]
        return [replace(event, text="".join(piece.decode("utf-8", "replace") for piece in pieces))]


class OneTokenMore(Faithful):
    def change_request(self, request: GenerateRequest) -> GenerateRequest:
        asked = request.sampling.max_tokens
        more = None if asked is None else asked + 1
        return replace(request, sampling=replace(request.sampling, max_tokens=more))


class NoTimeout(Faithful):
    def change_request(self, request: GenerateRequest) -> GenerateRequest:
        return replace(request, timeout=None)


class CutsMaxTokens(Faithful):
    def change_request(self, request: GenerateRequest) -> GenerateRequest:
        limited = min(request.sampling.max_tokens or 64, 1024)
        return replace(request, sampling=replace(request.sampling, max_tokens=limited))


class AlwaysTheSamePrompt(Faithful):
    def change_request(self, request: GenerateRequest) -> GenerateRequest:
        return replace(request, prompt=(50,)) if isinstance(request.prompt, tuple) else request


class WorksOnWhenClosed(Faithful):
    async def generate(self, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
        queue: asyncio.Queue[GenerateEvent | ThemisError] = asyncio.Queue()

        async def pump() -> None:
            try:
                async for event in EngineBackend.generate(self, request):
                    queue.put_nowait(event)
            except ThemisError as error:
                queue.put_nowait(error)

        self.pump = asyncio.create_task(pump())
        while True:
            event = await queue.get()
            if isinstance(event, ThemisError):
                raise event
            yield event
            if isinstance(event, Done):
                return


class LeavesThread(Faithful):
    async def start(self) -> None:
        await super().start()
        threading.Thread(target=threading.Event().wait, daemon=True).start()


class LeavesFile(Faithful):
    async def start(self) -> None:
        await super().start()
        os.open(__file__, os.O_RDONLY)


class StatsFall(Faithful):
    async def stats(self) -> BackendStats:
        stats = await super().stats()
        return replace(stats, steps=stats.steps % 3)


class LogprobsUnsorted(Faithful):
    def change_event(self, event: GenerateEvent) -> list[GenerateEvent]:
        if not isinstance(event, Delta):
            return [event]
        entries = [replace(entry, top=entry.top[::-1]) for entry in event.logprobs]
        return [replace(event, logprobs=tuple(entries))]


class NotEmbeddingButSilent(Faithful):
    async def load_adapter(self, name: str, path: str, description: str = "") -> None:
        return None


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        (NoStarted, "test_event_order"),
        (FinishedAfterDone, "test_event_order"),
        (WrongUsage, "test_usage_counts_the_tokens_seen"),
        (SplitsCharacters, "test_text_never_splits_characters"),
        (OneTokenMore, "test_max_tokens"),
        (OneTokenMore, "test_lengths_and_stops_of_neighbours_do_not_mix"),
        (NoTimeout, "test_timeout"),
        (CutsMaxTokens, "test_max_tokens_beyond_the_context"),
        (AlwaysTheSamePrompt, "test_prompt_as_token_ids"),
        (WorksOnWhenClosed, "test_closing_the_generator_stops_it"),
        (WorksOnWhenClosed, "test_cancelling_the_task_stops_it"),
        (WorksOnWhenClosed, "test_closing_after_the_first_event_stops_it"),
        (LeavesThread, "test_nothing_is_left_after_aclose"),
        (LeavesFile, "test_nothing_is_left_after_aclose"),
        (StatsFall, "test_counters_rise_and_agree"),
        (LogprobsUnsorted, "test_logprobs"),
        (NotEmbeddingButSilent, "test_no_adapters"),
    ],
)
def test_faults_are_found(fault: type[Faithful], check: str) -> None:
    assert_found(fault, check)


@pytest.mark.parametrize(
    ("field", "check", "parameters"),
    [
        ("stop", "test_stop_string", {}),
        ("stop", "test_stop_string_over_several_tokens", {}),
        ("stop_token_ids", "test_stop_token_ids", {}),
        ("min_tokens", "test_min_tokens", {}),
        ("seed", "test_same_seed_same_answer", {}),
        ("logit_bias", "test_logit_bias_bans", {}),
        ("logit_bias", "test_logit_bias_forces", {}),
        ("logprobs", "test_logprobs", {}),
        ("top_k", "test_narrowest_sampling_is_greedy", {"only": {"top_k": 1}}),
        ("top_p", "test_narrowest_sampling_is_greedy", {"only": {"top_p": 1e-6}}),
        ("min_p", "test_narrowest_sampling_is_greedy", {"only": {"min_p": 1.0}}),
        ("temperature", "test_greedy_is_deterministic", {}),
        *(
            (name, "test_penalties_change_repetitive_answers", {"penalty": {name: 2.0}})
            for name in ("repetition_penalty", "frequency_penalty", "presence_penalty")
        ),
    ],
)
def test_ignored_fields_are_found(field: str, check: str, parameters: dict[str, Any]) -> None:
    class Ignores(Faithful):
        def change_request(self, request: GenerateRequest) -> GenerateRequest:
            plain = {field: getattr(DEFAULTS, field)}
            return replace(request, sampling=replace(request.sampling, **plain))

    assert_found(Ignores, check, **parameters)


def test_the_faithful_one_has_no_fault(tmp_path: Path) -> None:
    BackendConformance().test_event_order(Faithful)
    with pytest.raises(NotImplementedError):
        BackendConformance.backend_factory.__wrapped__(BackendConformance())  # type: ignore[attr-defined]


def assert_found(fault: type[Faithful], check: str, **parameters: Any) -> None:
    class Suite(BackendConformance):
        deadline = 20.0
        prompt = "Once"  # Of what follows this, the bundled model is not sure.

    # A check fails with an assertion, a wrong error, or what `pytest.raises` and `fail` raise.
    with pytest.raises((AssertionError, ThemisError, StopAsyncIteration, pytest.fail.Exception)):
        getattr(Suite(), check)(fault, **parameters)
