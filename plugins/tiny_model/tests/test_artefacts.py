"""The shipped files: all there, small enough, and of the promised shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import themis_tiny_model

DATA = Path(themis_tiny_model.__file__).parent / "data"
LIMIT_BYTES = 12_500_000
HF_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.onnx",
}


def _config(name: str) -> dict[str, object]:
    text = (themis_tiny_model.path(name) / "config.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


@pytest.mark.parametrize("name", themis_tiny_model.NAMES)
def test_every_name_has_files(name: str) -> None:
    place = themis_tiny_model.path(name)
    assert place.is_dir() == name.endswith(("hf", "peft"))
    assert place.exists()


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'gguf-q4'.*gguf-f16.*lora-json-peft"):
        themis_tiny_model.path("gguf-q4")


def test_all_files_together_stay_under_the_limit() -> None:
    total = sum(file.stat().st_size for file in DATA.rglob("*") if file.is_file())
    assert total < LIMIT_BYTES


@pytest.mark.parametrize("name", ["hf", "draft-hf"])
def test_hugging_face_directories_are_complete(name: str) -> None:
    assert {file.name for file in themis_tiny_model.path(name).iterdir()} == HF_FILES
    config = _config(name)
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    assert int(str(config["max_position_embeddings"])) >= 1024


def test_rows_can_be_quantised_in_blocks_of_256() -> None:
    config = _config("hf")
    assert int(str(config["hidden_size"])) % 256 == 0
    assert int(str(config["intermediate_size"])) % 256 == 0


def test_models_share_one_tokenizer() -> None:
    one, two = (themis_tiny_model.path(n) / "tokenizer.json" for n in ("hf", "draft-hf"))
    assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize("adapter", ["german", "json"])
def test_adapters_in_peft_form_fit_the_model(adapter: str) -> None:
    pytest.importorskip("numpy")
    numpy_io = pytest.importorskip("safetensors.numpy")
    folder = themis_tiny_model.path(f"lora-{adapter}-peft")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["peft_type"] == "LORA"
    adapter_weights = numpy_io.load_file(folder / "adapter_model.safetensors")
    base = numpy_io.load_file(themis_tiny_model.path("hf") / "model.safetensors")
    for name, weight in adapter_weights.items():
        module = name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0]
        outputs, inputs = base[f"{module}.weight"].shape
        assert weight.shape in {(config["r"], inputs), (outputs, config["r"])}
        assert module.rsplit(".", 1)[1] in config["target_modules"]


def test_parameter_counts() -> None:
    numpy_io = pytest.importorskip("safetensors.numpy")
    sizes = {}
    for name in ("hf", "draft-hf"):
        weights = numpy_io.load_file(themis_tiny_model.path(name) / "model.safetensors")
        assert {str(weight.dtype) for weight in weights.values()} == {"float16"}
        sizes[name] = sum(weight.size for weight in weights.values())
    assert sizes["hf"] <= 4_000_000
    assert sizes["draft-hf"] * 8 <= sizes["hf"]
