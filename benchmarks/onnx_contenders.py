"""What `onnx` measures, each in a process of its own.

A contender loads the model, says so, and then answers each line with a workload (`Work`) on its
standard input with a line about how long that took.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


class Work(msgspec.Struct):
    """Prompts as token ids, with the number of new tokens of each; `clients` of them at once.

    Each client takes the next one as soon as it is done, so sequences join and leave all the time.
    """

    prompts: list[list[int]]
    new_tokens: list[int]
    clients: int


class Took(msgspec.Struct):
    """Wall time and the process's processor time in seconds, and tokens generated."""

    seconds: float
    cpu_seconds: float
    tokens: int


Run = Callable[[Work], int]


def themis(plugin: str, folder: str, threads: int, clients: int) -> Run:
    """Themis's engine with one of its backends, without a server."""
    from themis_core.messages import GenerateRequest, SamplingParams

    common = {"path": folder, "threads": threads, "parallel": clients, "context": 256}
    backend: Any
    if plugin == "onnx":
        from themis_onnx.backend import create as create_onnx
        from themis_onnx.settings import OnnxSettings

        backend = create_onnx(msgspec.convert(common, OnnxSettings))
    else:
        from themis_llamacpp.backend import create as create_llama
        from themis_llamacpp.settings import LlamaCppSettings

        common["kv_unified"] = False
        backend = create_llama(msgspec.convert(common, LlamaCppSettings))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(backend.start())

    async def one(prompt: list[int], count: int) -> int:
        request = GenerateRequest(
            prompt=tuple(prompt),
            sampling=SamplingParams(temperature=0, max_tokens=count, ignore_eos=True),
        )
        usage = 0
        async for event in backend.generate(request):
            found = getattr(event, "usage", None)
            usage = usage if found is None else found.completion_tokens
        return usage

    async def all_of(work: Work) -> int:
        queue = list(zip(work.prompts, work.new_tokens, strict=True))[::-1]

        async def client() -> int:
            made = 0
            while queue:
                made += await one(*queue.pop())
            return made

        return sum(await asyncio.gather(*(client() for _ in range(work.clients))))

    return lambda work: loop.run_until_complete(all_of(work))


def genai_model(folder: str, threads: int, clients: int) -> tuple[Any, Any]:
    """onnxruntime-genai and its model, with as many threads as Themis has."""
    import onnxruntime_genai as genai

    config = genai.Config(folder)
    options = {"session_options": {"intra_op_num_threads": threads}}
    changes = {
        "model": {"decoder": options},
        "engine": {"static_batching": {"max_batch_size": clients}},
    }
    config.overlay(json.dumps(changes))
    return genai, genai.Model(config)


def generator(folder: str, threads: int, clients: int) -> Run:
    """genai's Generator: a batch is formed once, and ends with its last sequence."""
    import numpy as np

    genai, model = genai_model(folder, threads, clients)

    def run(work: Work) -> int:
        made = 0
        for start in range(0, len(work.prompts), work.clients):
            prompts = work.prompts[start : start + work.clients]
            counts = work.new_tokens[start : start + work.clients]
            params = genai.GeneratorParams(model)
            length = len(prompts[0]) + max(counts)
            params.set_search_options(max_length=length, batch_size=len(prompts), do_sample=False)
            batch = genai.Generator(model, params)
            batch.append_tokens(np.array(prompts, np.int32))
            for _ in range(max(counts)):
                batch.generate_next_token()
                batch.get_next_tokens()
            made += sum(counts)  # What the shorter ones got beyond that is of no use.
        return made

    return run


def round_robin(folder: str, threads: int, clients: int) -> Run:
    """genai's Generators, one for each sequence, a token each in turn: so they join and leave."""
    import numpy as np

    genai, model = genai_model(folder, threads, clients)

    def run(work: Work) -> int:
        queue = list(zip(work.prompts, work.new_tokens, strict=True))[::-1]
        active: list[list[Any]] = []
        made = 0
        while queue or active:
            while queue and len(active) < work.clients:
                prompt, count = queue.pop()
                params = genai.GeneratorParams(model)
                params.set_search_options(max_length=len(prompt) + count, do_sample=False)
                one = genai.Generator(model, params)
                one.append_tokens(np.array(prompt, np.int32))
                active.append([one, count])
            for entry in active:
                entry[0].generate_next_token()
                entry[0].get_next_tokens()
                entry[1] -= 1
                made += 1
            active = [entry for entry in active if entry[1]]
        return made

    return run


def engine(folder: str, threads: int, clients: int) -> Run:
    """genai's Engine, to which a client gives its next request when the last one has ended."""
    import numpy as np

    genai, model = genai_model(folder, threads, clients)
    made_engine = genai.Engine(model)
    buffer = made_engine.create_event_buffer(64)

    def run(work: Work) -> int:
        queue = list(zip(work.prompts, work.new_tokens, strict=True))[::-1]
        made = 0
        active: list[Any] = []  # The engine does not keep its requests alive.
        while queue or active:
            while queue and len(active) < work.clients:
                prompt, count = queue.pop()
                request = made_engine.create_request()
                options = genai.TurnOptions(request)
                options.set_max_generated_tokens(count)
                options.set_do_sample(False)
                request.begin_turn(np.array(prompt, np.int32), options)
                active.append(request)
            for event in made_engine.run(buffer):
                flags = int(event.flags)
                made += bool(flags & int(genai.EngineEventFlags.TOKEN))
                if flags & int(genai.EngineEventFlags.FAILED):
                    raise RuntimeError(f"a request failed: {event.error_code}")
                if flags & int(genai.EngineEventFlags.TURN_FINISHED):
                    done = event.request
                    active.remove(done)
                    done.close()
        return made

    return run


CONTENDERS: dict[str, Callable[[str, int, int], Run]] = {
    "themis onnx": lambda *given: themis("onnx", *given),
    "genai Generator, batch": generator,
    "genai Generators, in turn": round_robin,
    "genai Engine": engine,
    "themis llamacpp": lambda *given: themis("llamacpp", *given),
}


def main(name: str, folder: str, threads: str, clients: str) -> None:
    """Load, then work through the lines."""
    run = CONTENDERS[name](str(Path(folder)), int(threads), int(clients))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        work = msgspec.json.decode(line, type=Work)
        cpu, start = time.process_time(), time.perf_counter()
        tokens = run(work)
        took = Took(time.perf_counter() - start, time.process_time() - cpu, tokens)
        sys.stdout.write(msgspec.json.encode(took).decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
