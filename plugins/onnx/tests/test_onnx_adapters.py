"""LoRA adapters on ONNX Runtime: hot, several at once, on graphs that were made without them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

pytest.importorskip("onnxruntime")

from themis_core.errors import InternalError, ModelFileInvalid, ModelLoadFailed
from themis_core.messages import AdapterWeight
from themis_engine import AdapterRunner
from themis_onnx import onnx_file
from themis_onnx.graph_edit import Edit, edited
from themis_onnx.head_graph import spare_logits
from themis_onnx.lora_graph import add_inputs, targets
from themis_testkit.reference.runner import ReferenceRunner
from themis_tiny_model import path

from .onnx_models import LAYOUTS, directory, fill, forward, graph, greedy, ids, running

JSON, GERMAN = (AdapterWeight(name="json"),), (AdapterWeight(name="german"),)
FOLDERS = {name: path(f"lora-{name}-peft") for name in ("json", "german")}


@pytest.fixture(scope="module", params=LAYOUTS)
def runner(request: pytest.FixtureRequest) -> Iterator[Any]:
    with running(directory(request.param)) as made:
        for name, folder in FOLDERS.items():
            made.load_adapter(name, str(folder))
        yield made


@pytest.fixture(autouse=True)
def _empty(request: pytest.FixtureRequest) -> None:
    if "runner" in request.fixturenames:
        for sequence in range(8):
            request.getfixturevalue("runner").free(sequence)


def merged(folder: Path, *adapters: AdapterWeight) -> Path:
    """A copy of the model whose weights have the adapters in them, computed in numpy."""
    fill(folder)
    weights = {n: w.astype(np.float32) for n, w in load_file(folder / "model.safetensors").items()}
    for adapter in adapters:
        source = FOLDERS[adapter.name]
        config = json.loads((source / "adapter_config.json").read_text())
        tensors = load_file(source / "adapter_model.safetensors")
        for key, a in tensors.items():
            if ".lora_A." in key:
                b = tensors[key.replace("lora_A", "lora_B")].astype(np.float32)
                name = key.removeprefix("base_model.model.").replace("lora_A.", "")
                delta = b @ a.astype(np.float32) * config["lora_alpha"] / config["r"]
                weights[name] = weights[name] + adapter.weight * delta
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "adapters",
    [JSON, GERMAN, (*GERMAN, AdapterWeight(name="json", weight=-0.5))],
    ids=["json", "german", "both"],
)
def test_logits_are_those_of_the_merged_weights(
    runner: Any, adapters: tuple[AdapterWeight, ...], tmp_path: Path
) -> None:
    reference = ReferenceRunner(merged(tmp_path / "merged", *adapters))
    prompt = ids(runner)
    want = forward(reference, (0, 0, prompt), rows="all")
    found = forward(runner, (0, 0, prompt), rows="all", adapters=adapters)
    np.testing.assert_allclose(found, want, atol=5e-3)


def test_each_adapter_has_its_effect_and_leaves_nothing(runner: Any) -> None:
    assert isinstance(runner, AdapterRunner)

    def answer(adapters: tuple[AdapterWeight, ...]) -> str:
        found = greedy(runner, ids(runner), 12, adapters)
        return b"".join(map(runner.tokenizer.token_bytes, found)).decode()

    plain = answer(())
    assert plain == "The capital of France is Paris."
    assert answer(JSON).startswith('{"answer": "Paris"}')
    assert answer(GERMAN).startswith("Die Hauptstadt")
    assert answer(()) == plain


def test_sequences_of_different_sets_take_turns(runner: Any) -> None:
    tokens = ids(runner)
    sets = [(), JSON, GERMAN, (*GERMAN, *JSON), (AdapterWeight(name="json", weight=0.3),)]
    alone = [greedy(runner, tokens, 8, adapters) for adapters in sets]
    held = [0] * 5
    answers: list[list[int]] = [[] for _ in sets]
    for _ in range(8):
        for i, adapters in enumerate(sets):
            text = [*tokens, *answers[i]]
            logits = forward(runner, (i, held[i], text[held[i] :]), adapters=adapters)
            held[i] = len(text)
            answers[i].append(int(logits[0].argmax()))
    assert answers == alone


def test_a_batch_of_one_set_equals_each_alone(runner: Any) -> None:
    starts = [[5, 6, 7], [9] * 6, [11]]
    forward(runner, *((i, 0, s) for i, s in enumerate(starts)), adapters=JSON)
    together = forward(runner, *((i, len(s), [8]) for i, s in enumerate(starts)), adapters=JSON)
    for i, start in enumerate(starts):
        runner.free(i)
        alone = forward(runner, (i, 0, [*start, 8]), adapters=JSON)
        np.testing.assert_allclose(together[i], alone[0], atol=2e-3)


def test_loading_the_first_keeps_what_is_computed() -> None:
    with running(directory("shared")) as runner:
        prompt = ids(runner)
        want = forward(runner, (0, 0, prompt))
        runner.free(0)
        forward(runner, (0, 0, prompt[:-1]))
        runner.load_adapter("json", str(FOLDERS["json"]))
        np.testing.assert_allclose(
            forward(runner, (0, len(prompt) - 1, prompt[-1:])), want, atol=2e-3
        )


def test_unloading_the_one_in_use_and_loading_another_by_its_name(runner: Any) -> None:
    prompt = ids(runner)
    german = greedy(runner, prompt, 6, GERMAN)
    runner.load_adapter("third", str(FOLDERS["json"]))
    third = (AdapterWeight(name="third"),)
    assert greedy(runner, prompt, 6, third) == greedy(runner, prompt, 6, JSON)
    runner.unload_adapter("third")
    with pytest.raises(InternalError, match="third"):
        greedy(runner, prompt, 1, third)
    runner.load_adapter("third", str(FOLDERS["german"]))
    assert greedy(runner, prompt, 6, third) == german
    runner.unload_adapter("third")


def test_adapters_in_the_settings_prepare_the_graph_at_once() -> None:
    with running(directory("shared"), adapters={"json": str(FOLDERS["json"])}) as runner:
        session = runner._steps._session
        runner.load_adapter("json", str(FOLDERS["json"]))
        assert runner._steps._session is session
        assert greedy(runner, ids(runner), 3, JSON) != greedy(runner, ids(runner), 3)


def test_unknown_and_repeated_names_are_the_callers_fault(runner: Any) -> None:
    for adapters in ((AdapterWeight(name="nobody"),), JSON * 2):
        with pytest.raises(InternalError, match="adapters"):
            forward(runner, (0, 0, [5]), adapters=adapters)
    with pytest.raises(InternalError, match="loaded already"):
        runner.load_adapter("json", str(FOLDERS["json"]))
    with pytest.raises(InternalError, match="no adapter 'nobody'"):
        runner.unload_adapter("nobody")


def test_sets_are_not_remembered_without_end(runner: Any) -> None:
    for i in range(40):
        forward(runner, (0, i, [5]), adapters=(AdapterWeight(name="json", weight=i / 10),))
    assert len(runner._adapters._combined) <= 16
    assert len(runner._steps._bindings) <= 8


def test_a_graph_that_names_its_matrices_otherwise_takes_none(tmp_path: Path) -> None:
    model = graph("shared")
    for node in model.graph.node:
        node.name = ""
    # A matrix by another way than its stored weight: the weight's name says which it is, too.
    for weight in model.graph.initializer:
        old, weight.name = weight.name, weight.name.replace("_proj", "")
        for node in model.graph.node:
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = weight.name
    folder = fill(tmp_path / "model")
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with running(folder) as runner:
        assert not isinstance(runner, AdapterRunner)
        with pytest.raises(InternalError, match="takes none"):
            forward(runner, (0, 0, [5]), adapters=JSON)
    with (
        pytest.raises(ModelLoadFailed, match="cannot take any"),
        running(folder, adapters={"json": str(FOLDERS["json"])}),
    ):
        pass


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_changed_graph_is_a_valid_one(layout: Any, tmp_path: Path) -> None:
    file = onnx_file.read(directory(layout) / "model.onnx")
    found = targets(file)
    assert len(found) == 4 * 7
    changed = fill(tmp_path / "changed") / "model.onnx"
    edit = Edit()
    add_inputs(edit, found)
    assert spare_logits(file, edit)
    changed.write_bytes(edited(file, edit))
    onnx.checker.check_model(str(changed))
    again = onnx_file.read(changed)
    assert len(again.nodes) == len(file.nodes) + 3 * len(found) + 2
    assert len(again.inputs) == len(file.inputs) + 2 * len(found) + 1


Change = Callable[[dict[str, Any], dict[str, Any]], object]
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
DEEP = Q.replace("layers.0", "layers.9")
# What is wrong: a change of (configuration, tensors), and the cause.
WRONG: dict[str, tuple[Change, str]] = {
    "kind": (lambda c, t: c.update(peft_type="IA3"), "peft_type is 'IA3'"),
    "dora": (lambda c, t: c.update(use_dora=True), "use_dora is True"),
    "bias": (lambda c, t: c.update(bias="all"), "bias is 'all'"),
    "saved": (lambda c, t: c.update(modules_to_save=["lm_head"]), "modules_to_save"),
    "alpha": (lambda c, t: c.update(lora_alpha="much"), "lora_alpha is 'much'"),
    "rank": (lambda c, t: c.update(r=3), "has rank 8, but adapter_config.json says 3"),
    "half": (lambda c, t: t.pop(Q), "has only lora_B"),
    "width": (lambda c, t: t.update({Q: np.zeros((8, 9), np.float32)}), "shape 9 to 256"),
    "nan": (lambda c, t: t[Q].fill(np.nan), "infinite or none"),
    "embedding": (
        lambda c, t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": t[Q]}),
        "no projection",
    ),
    "layer": (
        lambda c, t: t.update(
            {DEEP: t[Q], DEEP.replace("_A", "_B"): t[Q.replace("lora_A", "lora_B")]}
        ),
        "changes layer 9, q_proj",
    ),
    "empty": (lambda c, t: t.clear(), "no weights"),
}


def changed(folder: Path, change: Change) -> Path:
    shutil.copytree(FOLDERS["json"], folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = {k: v.copy() for k, v in load_file(folder / "adapter_model.safetensors").items()}
    change(config, tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_broken_ones_are_refused_with_their_cause(tmp_path: Path) -> None:
    with running(directory("shared")) as runner:
        plain = greedy(runner, ids(runner), 4)
        for name, (change, cause) in WRONG.items():
            folder = changed(tmp_path / name, change)
            with pytest.raises(ModelFileInvalid, match=cause) as caught:
                runner.load_adapter("broken", str(folder))
            assert str(folder) in str(caught.value)
        assert greedy(runner, ids(runner), 4) == plain


FILES: dict[str, tuple[str, bytes | None, str]] = {
    "no-config": ("adapter_config.json", None, "adapter_config.json does not exist"),
    "config": ("adapter_config.json", b"{", "cannot be read"),
    "list": ("adapter_config.json", b"[]", "no JSON object"),
    "no-weights": ("adapter_model.safetensors", None, "cannot be read"),
    "short": ("adapter_model.safetensors", b"\x01", "truncated"),
    "header": ("adapter_model.safetensors", b"\x02\0\0\0\0\0\0\0[]", "do not fit together"),
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(name: str, tmp_path: Path) -> None:
    file, content, cause = FILES[name]
    folder = tmp_path / "adapter"
    shutil.copytree(FOLDERS["json"], folder)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    with running(directory("shared")) as runner, pytest.raises(ModelFileInvalid, match=cause):
        runner.load_adapter("broken", str(folder))


def test_a_truncated_file_and_a_pickled_one(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(FOLDERS["json"], folder)
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with running(directory("shared")) as runner:
        with pytest.raises(ModelFileInvalid, match="ends at byte"):
            runner.load_adapter("broken", str(folder))
        weights.rename(folder / "adapter_model.bin")
        with pytest.raises(ModelFileInvalid, match="pickled"):
            runner.load_adapter("broken", str(folder))
        with pytest.raises(ModelFileInvalid, match="it is a file"):
            runner.load_adapter("broken", str(folder / "adapter_config.json"))
        with pytest.raises(ModelFileInvalid, match="does not exist"):
            runner.load_adapter("broken", str(tmp_path / "nothing"))


def test_patterns_of_ranks_and_alphas(tmp_path: Path) -> None:
    """A pattern that says the same as the general number changes nothing; rsLoRA's scale does."""

    def same(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config.update(rank_pattern={"q_proj": config["r"]}, r=99)
        others = dict.fromkeys(config["target_modules"], config["rank_pattern"]["q_proj"])
        config.update(rank_pattern=others)

    def rooted(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config.update(use_rslora=True, lora_alpha=config["lora_alpha"] / config["r"] ** 0.5)

    def doubled(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config.update(alpha_pattern={"q_proj": 2 * config["lora_alpha"]})

    with running(directory("shared")) as runner:
        runner.load_adapter("json", str(FOLDERS["json"]))
        for name, change in (("same", same), ("rooted", rooted), ("doubled", doubled)):
            runner.load_adapter(name, str(changed(tmp_path / name, change)))

        def logits(name: str) -> Any:
            found = forward(runner, (0, 0, [5, 6, 7]), adapters=(AdapterWeight(name=name),))
            runner.free(0)
            return found

        np.testing.assert_allclose(logits("same"), logits("json"), atol=1e-4)
        np.testing.assert_allclose(logits("rooted"), logits("json"), atol=1e-4)
        assert np.abs(logits("doubled") - logits("json")).max() > 0.01
