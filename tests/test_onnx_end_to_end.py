"""ONNX Runtime on the bundled model: the answers of the others, and answers without them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from themis_core.contracts import Backend
from themis_core.hooks import BackendPlugin, BundledModel
from themis_core.messages import AdapterWeight, ChatMessage, GenerateRequest, SamplingParams
from themis_core.plugins import make
from themis_core.plugins.registry import Registry
from themis_tiny_model import path

from .conftest import clean_environment, themis

pytest.importorskip("onnxruntime")

FRANCE, PARIS = "What is the capital of France?", "The capital of France is Paris."
PROMPTS = [
    FRANCE,
    "Was ist die Hauptstadt von Italien?",
    "What is Themis?",
    "How do I start the server?",
    "Hello!",
    "Who are you?",
    "Context: Nora lives in Lima. Question: Where does Nora live?",
    "capital of japan",
]
ADAPTERS: tuple[tuple[str, ...], ...] = ((), ("german",), ("json",), ("german", "json"))


def backend(name: str, **changes: Any) -> Backend:
    """The bundled model on one backend."""
    registry = Registry()
    model = registry.find("models", "tiny", BundledModel)
    plugin = registry.find("backends", name, BackendPlugin)
    made: Backend = make(plugin, plugin.settings(**(model.backends[name] | changes)))
    return made


async def answers(made: Backend, sets: tuple[tuple[str, ...], ...]) -> list[tuple[int, ...]]:
    """Greedy tokens of all prompts under each set of adapters, all at once."""
    await made.start()
    try:

        async def one(prompt: str, names: tuple[str, ...]) -> tuple[int, ...]:
            message = ChatMessage(role="user", content=prompt)
            ids = await made.tokenize((message,))
            request = GenerateRequest(
                prompt=ids,
                sampling=SamplingParams(temperature=0, max_tokens=48),
                adapters=tuple(AdapterWeight(name=name) for name in names),
            )
            found: list[int] = []
            async for event in made.generate(request):
                found += getattr(event, "token_ids", ())
            return tuple(found)

        return await asyncio.gather(*(one(p, names) for names in sets for p in PROMPTS))
    finally:
        await made.aclose()


def test_greedy_tokens_equal_the_references() -> None:
    pytest.importorskip("themis_testkit.reference")
    found = asyncio.run(answers(backend("onnx", threads=1, parallel=4), ((),)))
    assert all(len(tokens) > 1 for tokens in found)
    assert found == asyncio.run(answers(backend("reference"), ((),)))


def test_greedy_tokens_equal_llama_cpps_with_adapters_too() -> None:
    """Four sets of adapters, taking turns, eight prompts each."""
    pytest.importorskip("llama_cpp")
    names = ("german", "json")
    peft = {name: str(path(f"lora-{name}-peft")) for name in names}
    gguf = {name: str(path(f"lora-{name}-gguf")) for name in names}
    ours = asyncio.run(answers(backend("onnx", threads=1, adapters=peft), ADAPTERS))
    theirs = asyncio.run(answers(backend("llamacpp", threads=1, adapters=gguf), ADAPTERS))
    assert ours == theirs
    count = len(PROMPTS)
    assert len({tuple(ours[i : i + count]) for i in range(0, len(ours), count)}) == len(ADAPTERS)


@pytest.mark.parametrize("speculation", ["lookup", "draft"])
def test_speculation_changes_nothing(speculation: str) -> None:
    changes = {"draft_path": str(path("draft-hf"))} if speculation == "draft" else {}
    plain = asyncio.run(answers(backend("onnx", threads=1), ((),)))
    guessing = backend("onnx", threads=1, speculation=speculation, **changes)
    assert asyncio.run(answers(guessing, ((),))) == plain


WITHOUT_OTHERS = """
import importlib.metadata, sys
real = importlib.metadata.distributions
hidden = {"themis-llamacpp", "themis-testkit"}
importlib.metadata.distributions = lambda **k: (
    d for d in real(**k) if d.metadata["Name"] not in hidden
)
sys.modules.update(dict.fromkeys(["llama_cpp", "torch", "onnx", "onnxruntime_genai"]))
from themis_core.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_first_command_answers_without_a_compiler(tmp_path: Path) -> None:
    """Where llama.cpp is not installed, and nothing that only tests need."""
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_OTHERS, "run", FRANCE],
        cwd=tmp_path,
        env=clean_environment() | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (result.stdout, result.stderr, result.returncode) == (f"{PARIS}\n", "", 0)
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_can_name_it(tmp_path: Path) -> None:
    lines = ["[models.tiny]", 'source = "tiny"', 'backend = "onnx"', "threads = 1", "context = 512"]
    (tmp_path / "themis.toml").write_text("\n".join(lines))
    assert themis("run", FRANCE, cwd=tmp_path).stdout == f"{PARIS}\n"
    checked = themis("run", "--regex", "Rome|London", FRANCE, cwd=tmp_path)
    assert checked.stdout == "Rome\n"
