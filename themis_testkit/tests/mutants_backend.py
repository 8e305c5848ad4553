"""The reference backend, with one fault each; beside each fault the check that must find it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import Any, ClassVar

import msgspec

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
    """`Started` is missing"""

    def change_event(self, event: GenerateEvent) -> list[GenerateEvent]:
        return [] if isinstance(event, Started) else [event]


class FinishedAfterDone(Faithful):
    """`Finished` comes after `Done`"""

    def change_event(self, event: GenerateEvent) -> list[GenerateEvent]:
        if isinstance(event, Finished):
            return []
        return [event, Finished(reason="length")] if isinstance(event, Done) else [event]


class WrongUsage(Faithful):
    """usage says 1 token"""

    def change_event(self, event: GenerateEvent) -> list[GenerateEvent]:
        if not isinstance(event, Done):
            return [event]
        return [Done(usage=replace(event.usage, completion_tokens=1))]


class SplitsCharacters(Faithful):
    """text ends within characters"""

    def change_event(self, event: GenerateEvent) -> list[GenerateEvent]:
        if not isinstance(event, Delta) or self._running is None:
            return [event]
        tokenizer = self._running.runner.tokenizer
        pieces = [tokenizer.token_bytes(token) for token in event.token_ids]
        return [replace(event, text="".join(piece.decode("utf-8", "replace") for piece in pieces))]


class OneTokenMore(Faithful):
    """one token more than max_tokens"""

    def change_request(self, request: GenerateRequest) -> GenerateRequest:
        asked = request.sampling.max_tokens
        more = None if asked is None else asked + 1
        return replace(request, sampling=replace(request.sampling, max_tokens=more))


class NoTimeout(Faithful):
    """the timeout is ignored"""

    def change_request(self, request: GenerateRequest) -> GenerateRequest:
        return replace(request, timeout=None)


class CutsMaxTokens(Faithful):
    """max_tokens is silently cut at 1024"""

    def change_request(self, request: GenerateRequest) -> GenerateRequest:
        limited = min(request.sampling.max_tokens or 64, 1024)
        return replace(request, sampling=replace(request.sampling, max_tokens=limited))


class AlwaysTheSamePrompt(Faithful):
    """a prompt of token ids is ignored"""

    def change_request(self, request: GenerateRequest) -> GenerateRequest:
        return replace(request, prompt=(50,)) if isinstance(request.prompt, tuple) else request


class WorksOnWhenClosed(Faithful):
    """a closed generator works on"""

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
    """a thread outlives aclose"""

    async def start(self) -> None:
        await super().start()
        threading.Thread(target=threading.Event().wait, daemon=True).start()


class LeavesFile(Faithful):
    """a file outlives aclose"""

    async def start(self) -> None:
        await super().start()
        os.open(__file__, os.O_RDONLY)


class StatsFall(Faithful):
    """counters fall"""

    async def stats(self) -> BackendStats:
        stats = await super().stats()
        return replace(stats, steps=stats.steps % 3)


class LogprobsUnsorted(Faithful):
    """the alternatives of logprobs are worst first"""

    def change_event(self, event: GenerateEvent) -> list[GenerateEvent]:
        if not isinstance(event, Delta):
            return [event]
        entries = [replace(entry, top=entry.top[::-1]) for entry in event.logprobs]
        return [replace(event, logprobs=tuple(entries))]


class LoadsNoAdapter(Faithful):
    """load_adapter does nothing, silently"""

    async def load_adapter(self, name: str, path: str, description: str = "") -> None:
        return None


class Suite(BackendConformance):
    deadline: ClassVar[float] = 20.0
    prompt: ClassVar[str] = "Once"  # Of what follows this, the bundled model is not sure.


Case = tuple[type[Faithful], str, dict[str, Any]]


def ignores(field: str) -> type[Faithful]:
    """A backend that takes a field of `SamplingParams` and does nothing about it."""

    class Ignores(Faithful):
        def change_request(self, request: GenerateRequest) -> GenerateRequest:
            plain = {field: getattr(DEFAULTS, field)}
            return replace(request, sampling=replace(request.sampling, **plain))

    Ignores.__name__ = "Ignores_" + field
    Ignores.__doc__ = f"{field} is ignored"
    return Ignores


ADAPTERS = [(n, str(themis_tiny_model.path(f"lora-{n}-peft"))) for n in ("german", "json")]
_PENALTIES = ("repetition_penalty", "frequency_penalty", "presence_penalty")

MUTANTS: list[Case] = [
    (NoStarted, "test_event_order", {}),
    (FinishedAfterDone, "test_event_order", {}),
    (WrongUsage, "test_usage_counts_the_tokens_seen", {}),
    (SplitsCharacters, "test_text_never_splits_characters", {}),
    (OneTokenMore, "test_max_tokens", {}),
    (NoTimeout, "test_timeout", {}),
    (CutsMaxTokens, "test_max_tokens_beyond_the_context", {}),
    (AlwaysTheSamePrompt, "test_prompt_as_token_ids", {}),
    (WorksOnWhenClosed, "test_closing_the_generator_stops_it", {}),
    (LeavesThread, "test_nothing_is_left_after_aclose", {}),
    (LeavesFile, "test_nothing_is_left_after_aclose", {}),
    (StatsFall, "test_counters_rise_and_agree", {}),
    (LogprobsUnsorted, "test_logprobs", {}),
    (LoadsNoAdapter, "test_loading_and_unloading_while_serving", {"adapter_files": ADAPTERS}),
    (ignores("stop"), "test_stop_string", {}),
    (ignores("stop_token_ids"), "test_stop_token_ids", {}),
    (ignores("min_tokens"), "test_min_tokens", {}),
    (ignores("seed"), "test_same_seed_same_answer", {}),
    (ignores("logit_bias"), "test_logit_bias_bans", {}),
    (ignores("logprobs"), "test_logprobs", {}),
    (ignores("top_k"), "test_narrowest_sampling_is_greedy", {"only": {"top_k": 1}}),
    (ignores("top_p"), "test_narrowest_sampling_is_greedy", {"only": {"top_p": 1e-6}}),
    (ignores("min_p"), "test_narrowest_sampling_is_greedy", {"only": {"min_p": 1.0}}),
    (ignores("temperature"), "test_greedy_is_deterministic", {}),
    *(
        (ignores(name), "test_penalties_change_repetitive_answers", {"penalty": {name: 2.0}})
        for name in _PENALTIES
    ),
]

# The same faults, found by further checks.
AGAIN: list[Case] = [
    (OneTokenMore, "test_lengths_and_stops_of_neighbours_do_not_mix", {}),
    (WorksOnWhenClosed, "test_cancelling_the_task_stops_it", {}),
    (WorksOnWhenClosed, "test_closing_after_the_first_event_stops_it", {}),
    (ignores("stop"), "test_stop_string_over_several_tokens", {}),
    (ignores("logit_bias"), "test_logit_bias_forces", {}),
]
