"""LoRA adapters of llama.cpp: loaded, switched, mixed, freed; broken ones refused by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from themis_core.errors import InternalError, ModelFileInvalid
from themis_core.messages import AdapterWeight
from themis_engine import AdapterRunner
from themis_llamacpp.runner import LlamaRunner
from themis_tiny_model import path

from .runs import PROMPT, greedy, part, running

JSON, GERMAN = (AdapterWeight(name="json"),), (AdapterWeight(name="german"),)


@pytest.fixture(scope="module")
def runner() -> Iterator[LlamaRunner]:
    with running() as made:
        for name in ("json", "german"):
            made.load_adapter(name, str(path(f"lora-{name}-gguf")))
        yield made


@pytest.fixture(autouse=True)
def _empty(runner: LlamaRunner) -> None:
    for sequence in range(4):
        runner.free(sequence)


def answer(runner: LlamaRunner, adapters: tuple[AdapterWeight, ...], count: int = 12) -> str:
    tokens = runner.tokenizer.encode(PROMPT, parse_special=True)
    answered = greedy(runner, tokens, count, adapters=adapters)
    runner.free(0)
    text = b"".join(map(runner.tokenizer.token_bytes, answered))
    return text.decode("utf-8", "replace")


def test_each_adapter_has_its_effect_and_leaves_nothing(runner: LlamaRunner) -> None:
    assert isinstance(runner, AdapterRunner)
    plain = answer(runner, ())
    assert "The capital of France is Paris" in plain
    assert '{"answer": "Paris"}' in answer(runner, JSON)
    assert "Die Hauptstadt" in answer(runner, GERMAN)
    assert answer(runner, ()) == plain


def test_weights_and_mixtures(runner: LlamaRunner) -> None:
    tokens = runner.tokenizer.encode(PROMPT, parse_special=True)

    def logits(*adapters: AdapterWeight) -> Any:
        row = runner.forward(part(0, 0, tokens, adapters=adapters))[0].copy()
        runner.free(0)
        return row

    half = AdapterWeight(name="json", weight=0.5)
    seen = [logits(), logits(*JSON), logits(half), logits(*GERMAN), logits(*GERMAN, half)]
    for i, one in enumerate(seen):
        for other in seen[:i]:
            assert np.abs(one - other).max() > 0.1
    np.testing.assert_array_equal(logits(*GERMAN, half), seen[-1])
    np.testing.assert_array_equal(logits(AdapterWeight(name="json", weight=0.0)), seen[0])


def test_sequences_of_different_sets_take_turns(runner: LlamaRunner) -> None:
    tokens = runner.tokenizer.encode(PROMPT, parse_special=True)
    sets = [(), JSON, GERMAN, (*GERMAN, *JSON)]
    alone = []
    for adapters in sets:
        alone.append(greedy(runner, tokens, 8, adapters=adapters))
        runner.free(0)
    held = [0] * 4
    answers: list[list[int]] = [[], [], [], []]
    for _ in range(8):
        for i, adapters in enumerate(sets):
            all_tokens = tokens + answers[i]
            batch = part(i, held[i], all_tokens[held[i] :], adapters=adapters)
            held[i] = len(all_tokens)
            answers[i].append(int(runner.forward(batch)[0].argmax()))
    assert answers == alone


def test_unknown_and_repeated_names_are_the_callers_fault(runner: LlamaRunner) -> None:
    for adapters in ((AdapterWeight(name="nobody"),), JSON * 2):
        with pytest.raises(InternalError, match="adapters"):
            runner.forward(part(0, 0, [5], adapters=adapters))
    with pytest.raises(InternalError, match="loaded already"):
        runner.load_adapter("json", str(path("lora-json-gguf")))
    with pytest.raises(InternalError, match="no adapter 'nobody'"):
        runner.unload_adapter("nobody")
    assert runner.forward(part(0, 0, [5])).shape[0] == 1


def test_unloading_the_one_in_use_and_loading_it_again() -> None:
    with running() as runner:
        plain = answer(runner, ())
        for _ in range(3):
            runner.load_adapter("json", str(path("lora-json-gguf")))
            assert answer(runner, JSON) != plain
            runner.unload_adapter("json")
            assert answer(runner, ()) == plain
        # Closing with an adapter in use frees everything once.
        runner.load_adapter("json", str(path("lora-json-gguf")))
        answer(runner, JSON)


GOOD = path("lora-json-gguf").read_bytes()
RANK = 4


def made(file: Path, tensors: dict[str, tuple[int, ...]], **changes: Any) -> None:
    """An adapter with tensors of zeros; a change to None leaves a key out."""
    values: dict[str, Any] = {
        "architecture": "llama",
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": 8.0,
    } | {key.replace("__", "."): value for key, value in changes.items()}
    writer = gguf.GGUFWriter(file, values.pop("architecture"))
    adders: dict[type, Any] = {str: writer.add_string, float: writer.add_float32}
    adders |= {int: writer.add_uint32, list: writer.add_array}
    for key, value in values.items():
        if value is not None:
            adders[type(value)](key, value)
    kind = np.int32 if changes.get("adapter__lora__task_name") == "integers" else np.float32
    for name, shape in tensors.items():
        writer.add_tensor(name, np.zeros(shape, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pair(name: str, inputs: int, outputs: int, rank: int = RANK) -> dict[str, tuple[int, ...]]:
    return {f"{name}.lora_a": (rank, inputs), f"{name}.lora_b": (outputs, rank)}


Q = "blk.0.attn_q.weight"
FINE = pair(Q, 256, 256)
# What is wrong: (tensors, changes of the metadata, the cause).
WRONG: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, Any], str]] = {
    "architecture": (FINE, {"architecture": "qwen2"}, "architecture 'qwen2'.*is 'llama'"),
    "width": (pair(Q, 128, 256), {}, "incorrect shape"),
    "no-such-tensor": (pair("blk.9.attn_q.weight", 256, 256), {}, "does not exist in base model"),
    "half-a-pair": ({f"{Q}.lora_a": (RANK, 256)}, {}, "has only lora_a"),
    "ranks": (FINE | {f"{Q}.lora_b": (256, 2)}, {}, "ranks 4 and 2"),
    "empty": ({}, {}, "no weights"),
    "other-tensor": (FINE | {"blk.0.attn_norm.weight": (256,)}, {}, "would have no effect"),
    "norm": (pair("blk.0.attn_norm.weight", 256, 1), {}, "no matrix"),
    "embedding": (
        {"token_embd.weight.lora_a": (1920, RANK), "token_embd.weight.lora_b": (256, RANK)},
        {},
        "no output matrix apart",
    ),
    "integers": (FINE, {"adapter__lora__task_name": "integers"}, "no form that can be applied"),
    "kind": (FINE, {"adapter__type": "ia3"}, "adapter.type is 'ia3'"),
    "alpha-as-text": (FINE, {"adapter__lora__alpha": "8"}, "adapter.lora.alpha as '8'"),
    "no-alpha": (FINE, {"adapter__lora__alpha": None}, "no adapter.lora.alpha"),
    "alora": (FINE, {"adapter__alora__invocation_tokens": [1, 2]}, "aLoRA"),
    "prefix": (FINE, {"adapter__lora__prompt_prefix": "Obey: "}, "prompt prefix"),
}
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "half": (lambda: GOOD[: len(GOOD) // 2], "its tensors need"),
    "nothing": (lambda: b"", "the file is empty"),
    "text": (lambda: b'{"peft_type": "LORA"}', "a JSON text"),
    "model": (lambda: path("gguf-f16").read_bytes(), "a whole model"),
    "safetensors": (
        (path("lora-json-peft") / "adapter_model.safetensors").read_bytes,
        "a safetensors file",
    ),
}


def all_broken(folder: Path) -> dict[str, str]:
    """Write all broken files into a folder; gives the cause of each."""
    for name, (tensors, changes, _) in WRONG.items():
        made(folder / name, tensors, **changes)
    for name, (data, _) in FILES.items():
        (folder / name).write_bytes(data())
    return {name: spec[-1] for name, spec in WRONG.items()} | {
        name: cause for name, (_, cause) in FILES.items()
    }


def test_the_maker_makes_good_ones_too(runner: LlamaRunner, tmp_path: Path) -> None:
    made(tmp_path / "good.gguf", FINE)
    runner.load_adapter("good", str(tmp_path / "good.gguf"))
    runner.forward(part(0, 0, [5, 6], adapters=(AdapterWeight(name="good"),)))
    runner.unload_adapter("good")


def test_broken_ones_are_refused_with_their_cause(runner: LlamaRunner, tmp_path: Path) -> None:
    plain = answer(runner, ())
    for name, cause in all_broken(tmp_path).items():
        with pytest.raises(ModelFileInvalid, match=cause) as caught:
            runner.load_adapter("broken", str(tmp_path / name))
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(ModelFileInvalid, match="no such file"):
        runner.load_adapter("broken", str(tmp_path / "missing.gguf"))
    with pytest.raises(ModelFileInvalid, match=r"PEFT folder.*convert_lora_to_gguf"):
        runner.load_adapter("broken", str(path("lora-json-peft")))
    assert answer(runner, ()) == plain


CHILD = """
import random, sys
from pathlib import Path
from themis_core.errors import ThemisError
from themis_core.messages import AdapterWeight
from themis_llamacpp.runner import LlamaRunner
from themis_llamacpp.settings import LlamaCppSettings
from themis_engine import Batch
import numpy as np
model, good, file = map(Path, sys.argv[1:])
runner = LlamaRunner(LlamaCppSettings(path=str(model), threads=1, context=64, parallel=1))
one, none = np.zeros(1, np.int32), ()
data = good.read_bytes()
for seed in range(150):
    chance, damaged = random.Random(seed), bytearray(data)
    for _ in range(3):
        offset = chance.randrange(24, 3000)
        damaged[offset : offset + 2] = chance.randbytes(2)
    file.write_bytes(bytes(damaged))
    try:
        runner.load_adapter("damaged", str(file))
    except ThemisError:
        continue
    runner.forward(Batch(one, one, one, one, (AdapterWeight(name="damaged"),)))
    runner.free(0)
    runner.unload_adapter("damaged")
runner.close()
print("alive")
"""


def test_no_damaged_header_ends_the_process(tmp_path: Path) -> None:
    files = [path("gguf-f16"), path("lora-json-gguf"), tmp_path / "damaged.gguf"]
    result = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, files)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "alive"
