"""LoRA in the numpy reference: by its formula, several at once, and refusals by name."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import themis_tiny_model
from themis_core.errors import ModelFileInvalid
from themis_testkit.reference.llama import NumpyLlama

from .safetensors_file import random_llama, write_safetensors

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 6.0, "bias": "none", "use_dora": False}
Q = "model.layers.1.self_attn.q_proj"
DOWN = "model.layers.0.mlp.down_proj"
SHAPES = {Q: (16, 8), DOWN: (8, 12)}


def write_adapter(
    folder: Path, seed: int = 1, names: tuple[str, ...] = (Q, DOWN), **changes: Any
) -> dict[str, Any]:
    """An adapter for the model that `random_llama` writes; gives its tensors."""
    folder.mkdir(exist_ok=True)
    config = CONFIG | changes
    (folder / "adapter_config.json").write_text(json.dumps(config))
    random = np.random.default_rng(seed)
    tensors = {}
    for name in names:
        outputs, inputs = SHAPES[name]
        for part, shape in (("A", (2, inputs)), ("B", (outputs, 2))):
            values = random.normal(0, 0.5, shape).astype(np.float32)
            tensors[f"base_model.model.{name}.lora_{part}.weight"] = values
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return tensors


def logits(llama: NumpyLlama) -> Any:
    return llama.logits(llama.forward(TOKENS, llama.empty_cache())[0])


@pytest.mark.parametrize(("rslora", "scale"), [(False, 3.0), (True, 6.0 / math.sqrt(2))])
def test_it_is_the_formula(tmp_path: Path, rslora: bool, scale: float) -> None:
    weights = random_llama(tmp_path)
    llama = NumpyLlama(tmp_path)
    pairs = write_adapter(tmp_path / "a", use_rslora=rslora)
    adapted = llama.adapted({llama.adapter(tmp_path / "a"): 0.5})
    changed = tmp_path / "changed"
    changed.mkdir()
    random_llama(changed)
    for name in SHAPES:
        a, b = (pairs[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        weights[f"{name}.weight"] = weights[f"{name}.weight"] + np.float32(0.5 * scale) * (b @ a)
    write_safetensors(changed / "model.safetensors", weights)
    np.testing.assert_allclose(logits(adapted), logits(NumpyLlama(changed)), rtol=1e-3, atol=1e-4)
    assert np.abs(logits(adapted) - logits(llama)).max() > 0.1


def test_several_add_up_and_the_model_stays_as_it_was(tmp_path: Path) -> None:
    random_llama(tmp_path)
    llama = NumpyLlama(tmp_path)
    before = logits(llama)
    write_adapter(tmp_path / "a", 1)
    write_adapter(tmp_path / "b", 2, (Q,))
    a, b = llama.adapter(tmp_path / "a"), llama.adapter(tmp_path / "b")
    one_by_one = llama.adapted({a: 1.0}).adapted({b: 0.25})
    np.testing.assert_allclose(logits(llama.adapted({a: 1.0, b: 0.25})), logits(one_by_one), 1e-4)
    np.testing.assert_array_equal(logits(llama.adapted({a: 0.0})), before)
    np.testing.assert_array_equal(logits(llama), before)
    assert len({logits(llama.adapted(s)).tobytes() for s in ({a: 1.0}, {b: 1.0}, {})}) == 3


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3'"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"r": 0}, "rank is 0"),
        ({"r": 3}, "rank is 3"),
        ({"r": "two"}, "no usable configuration"),
        ({"lora_alpha": None}, "no usable configuration"),
    ],
)
def test_other_kinds_are_refused_by_name(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    random_llama(tmp_path)
    write_adapter(tmp_path / "a", **changes)
    with pytest.raises(ModelFileInvalid, match=why):
        NumpyLlama(tmp_path).adapter(tmp_path / "a")


def test_wrong_tensors_are_refused(tmp_path: Path) -> None:
    random_llama(tmp_path)
    llama = NumpyLlama(tmp_path)
    fine = write_adapter(tmp_path / "a")
    q_a = f"base_model.model.{Q}.lora_A.weight"
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "no tensors"),
        ({q_a: fine[q_a]}, "one is missing"),
        (fine | {q_a: fine[q_a][:, :4]}, "shapes"),
        (fine | {f"{q_a}.extra": fine[q_a]}, "no part of a LoRA"),
        (fine | {"base_model.model.lm_head.weight": fine[q_a]}, "no part of a LoRA"),
        ({k.replace("layers.1", "layers.7"): v for k, v in fine.items()}, "no linear layer"),
        ({k.replace(f"{Q}.", "model.norm."): v for k, v in fine.items()}, "no linear layer"),
    ]
    for tensors, why in wrong:
        write_safetensors(tmp_path / "a" / "adapter_model.safetensors", tensors)
        with pytest.raises(ModelFileInvalid, match=why):
            llama.adapter(tmp_path / "a")


def test_missing_and_broken_files(tmp_path: Path) -> None:
    llama = NumpyLlama(themis_tiny_model.path("hf"))
    with pytest.raises(ModelFileInvalid, match="cannot be read"):
        llama.adapter(tmp_path)
    shutil.copytree(themis_tiny_model.path("lora-json-peft"), tmp_path / "a")
    llama.adapter(tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ModelFileInvalid, match="truncated"):
        llama.adapter(tmp_path / "a")
    (tmp_path / "a" / "adapter_config.json").write_text("[]")
    with pytest.raises(ModelFileInvalid, match="no JSON object"):
        llama.adapter(tmp_path / "a")
