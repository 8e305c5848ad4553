"""Parsers and choices on their own, against whatever Hypothesis thinks of."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from themis_core.errors import ModelFileInvalid, ThemisError
from themis_core.messages import Constraint
from themis_engine.byte_tokenizer import ByteTokenizer
from themis_engine.constraint import ConstraintCompiler
from themis_engine.constraint.compiler import limits, start
from themis_engine.constraint.vocabulary import byte_vocabulary
from themis_engine.hf_tokenizer import HfTokenizer
from themis_tiny_model import path
from themis_vllm_remote.affinity import Affinity
from themis_vllm_remote.breaker import Breaker
from themis_vllm_remote.engine.adapter_files import check_adapter
from themis_vllm_remote.http import chunks
from themis_vllm_remote.http.address import HttpAddress
from themis_vllm_remote.http.client import ClientOptions, HttpClient
from themis_vllm_remote.http.metrics import load_of
from themis_vllm_remote.marked_tokenizer import MarkedTokenizer
from themis_vllm_remote.structured import structured_outputs


@given(st.text(max_size=200))
def test_any_page_of_metrics_can_be_read(page: str) -> None:
    load_of(page)


@given(st.lists(st.tuples(st.text(max_size=20), st.integers(0, 10**6)), max_size=5))
def test_metrics_are_summed_whatever_their_labels_are(samples: list[tuple[str, int]]) -> None:
    lines = ["# TYPE vllm:num_requests_running gauge"]
    for label, value in samples:
        quoted = label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        lines.append(f'vllm:num_requests_running{{model_name="{quoted}"}} {value}.0 1700000000')
    assert load_of("\n".join(lines)).running == sum(value for _, value in samples)


@given(st.binary(max_size=200), st.sampled_from([chunks.CompletionChunk, chunks.ChatChunk]))
def test_any_event_gives_pieces_or_an_error(data: bytes, kind: type[chunks.Chunk]) -> None:
    with suppress(ThemisError):
        chunks.read([data], kind, "here")


_CHOICES = st.lists(st.integers(0, 2**31 - 1), max_size=4)


@settings(max_examples=30)
@given(st.lists(_CHOICES, min_size=1, max_size=8), st.data())
def test_events_are_found_however_the_bytes_are_cut(
    ids: list[list[int]], data: st.DataObject
) -> None:
    """Over a real connection, with line ends of both kinds."""
    events = [json.dumps({"choices": [{"token_ids": each}]}) for each in ids]
    end = data.draw(st.sampled_from(["\n\n", "\r\n\r\n"]))
    whole = "".join(f"data: {event}{end}" for event in [*events, "[DONE]"]).encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=12)))
    parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        return response

    async def main() -> list[bytes]:
        app = web.Application()
        app.router.add_post("/", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        client = HttpClient(HttpAddress(url, url), ClientOptions())
        client.open()
        try:
            return [event async for found in client.stream("/", {}) for event in found]
        finally:
            await client.aclose()
            await runner.cleanup()

    assert asyncio.run(main()) == [event.encode() for event in events]


@given(st.lists(st.sampled_from(["ok", "fail", "cancel", "wait"]), max_size=40))
def test_a_breaker_lets_one_through_at_a_time_once_it_is_open(steps: list[str]) -> None:
    breaker, now, failures, until = Breaker(3, 10.0), 0.0, 0, 0.0
    for step in steps:
        if step == "wait":
            now += 6.0
            continue
        allowed = breaker.allows(now)
        assert allowed == (failures < 3 or now >= until)
        if not allowed:
            continue
        breaker.begin()
        if failures >= 3:
            assert not breaker.allows(now)
        if step == "ok":
            breaker.succeeded()
            failures = 0
        elif step == "fail":
            breaker.failed(now)
            failures += 1
            until = now + 10.0
        else:
            breaker.abandoned()


def test_affinity_follows_the_longest_beginning() -> None:
    affinity = Affinity()
    long = list(range(1000))
    affinity.note(long[:256], 0)
    affinity.note(long, 1)
    assert affinity.find(long[:128]) == 1
    assert affinity.find([*long[:600], -1, *long]) == 1
    assert affinity.find(long[1:]) is None
    assert affinity.find(long[:127]) is None
    affinity.note(long[:256], 2)
    assert affinity.find(long[:300]) == 2
    assert affinity.find(long) == 1


_CONSTRAINTS = [
    (Constraint(kind="json_schema", value={"enum": ["a/b", 'q"', 7]}), "7", "8"),
    (Constraint(kind="regex", value=r"[a/]{2}\d?"), "a/5", "b"),
    (Constraint(kind="choice", value=["grün/", 'x"y', "a\nb"]), "a\nb", "a"),
    (Constraint(kind="gbnf", value='root ::= "a/" [0-9]+'), "a/12", "a"),
    (Constraint(kind="lark", value='start: "a" | "/b/"'), "/b/", "b"),
]


@pytest.mark.parametrize(("constraint", "good", "bad"), _CONSTRAINTS, ids=lambda c: str(c)[:30])
def test_a_grammar_means_what_the_constraint_means(
    constraint: Constraint, good: str, bad: str
) -> None:
    """What vLLM gets is read here as its llguidance reads it, and accepts the same texts."""
    source = structured_outputs(constraint, "guidance")["grammar"]
    assert source.startswith("%llguidance {}")
    compiler = ConstraintCompiler(ByteTokenizer(), ByteTokenizer.VOCAB_SIZE)
    ours = compiler.compile(constraint)
    for text, expected in ((good, True), (bad, False)):
        assert (ours.check(text) is None) == expected
        walk = start(byte_vocabulary(), source, limits("lark"))
        data = list(text.encode())
        fits = walk.try_consume_tokens(data) == len(data) and walk.is_accepting()
        assert fits == expected


def test_markers_of_calls_count_as_special() -> None:
    tokenizer = HfTokenizer(path("hf"))
    marked = MarkedTokenizer(tokenizer, 1920)
    assert "<tool_call>" not in tokenizer.special_tokens
    assert marked.special_tokens["<tool_call>"] == 1918
    assert marked.special_tokens["<|im_end|>"] == tokenizer.special_tokens["<|im_end|>"]
    assert marked.encode("a<tool_call>", parse_special=True)[-1] == 1918


def test_adapters_are_looked_at_before_the_engine_does(tmp_path: Path) -> None:
    good = path("lora-json-peft")
    check_adapter(str(good), 8)
    with pytest.raises(ModelFileInvalid, match="rank is 8"):
        check_adapter(str(good), 4)
    broken = tmp_path / "broken"
    broken.mkdir()
    with pytest.raises(ModelFileInvalid, match="adapter_config"):
        check_adapter(str(broken), 8)
    (broken / "adapter_config.json").write_bytes((good / "adapter_config.json").read_bytes())
    content = (good / "adapter_model.safetensors").read_bytes()
    for data in (b"", content[:-1], content[:100], b"\xff" * 200, content + b"x"):
        (broken / "adapter_model.safetensors").write_bytes(data)
        with pytest.raises(ModelFileInvalid, match=r"adapter_model\.safetensors"):
            check_adapter(str(broken), 8)
