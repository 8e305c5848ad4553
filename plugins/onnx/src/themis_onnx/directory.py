"""Finding a model's files in the layouts that people publish.

- onnx-community and transformers.js: `config.json`, tokenizer, and `onnx/model_<variant>.onnx`.
- optimum: `model.onnx` beside `config.json`.
- onnxruntime-genai: `genai_config.json`, which names the graph; often in folders, one per device.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from themis_core.errors import ModelFileInvalid, ModelLoadFailed
from themis_onnx import onnx_file
from themis_onnx.onnx_file import OnnxFile

_MODEL = re.compile(r"model(?:_(\w+))?\.onnx")
_FULL = "fp32"  # The variant of plain `model.onnx`.
# What computes well and needs little comes first.
_ON_CPU = ("q4", "quantized", "int8", "uint8", _FULL, "fp16", "q4f16", "bnb4")
_ON_GPU = ("q4f16", "fp16", "q4", _FULL, "quantized", "int8", "uint8", "bnb4")
_ENCODER = (_FULL, "fp16", "quantized", "int8", "uint8", "q4", "q4f16", "bnb4")
_GENAI = "genai_config.json"
_NESTED = 2  # Levels of folders in which genai models are looked for.
_SPLIT = {
    "decoder_model_merged": "its decoder is merged from two graphs (use_cache_branch)",
    "decoder_with_past_model": "it is exported in two graphs, with and without past",
    "encoder_model": "it has an encoder and a decoder",
    "embed_tokens": "its embeddings are a graph of their own, as multimodal models have it",
}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of one model. `root` has the tokenizer; `genai` is {} in the other layouts."""

    graph: OnnxFile
    root: Path
    config: dict[str, Any]
    genai: dict[str, Any]


def find(path: Path, variant: str | None, provider: str) -> ModelFiles:
    """Find and check the files. Raises `ModelFileInvalid` or `ModelLoadFailed`."""
    if path.suffix == ".onnx" or path.is_file():
        if variant is not None:
            raise _needless(f"{variant!r}, but path names the file itself")
        return _around(path)
    if not path.is_dir():
        raise ModelFileInvalid(
            f"{path} does not exist.", field="path", remedy=_near(path), plugin="onnx"
        )
    if (path / _GENAI).exists():
        return _genai(path, variant)
    for folder in (path / "onnx", path):
        found = _variants(folder)
        if found:
            return _files(_choose(folder, found, variant, provider), path)
    nested = _nested(path)
    if nested:
        return _genai(_choose_folder(path, nested, variant), None)
    raise _nothing_found(path)


def read_json(file: Path, *, required: bool = False) -> dict[str, Any]:
    """The object in a file; {} if it does not exist and need not. Raises `ModelFileInvalid`."""
    remedy = "Download the model's directory again, with all its files."
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if not required:
            return {}
        message = f"{file} does not exist."
        raise ModelFileInvalid(message, field="path", remedy=remedy, plugin="onnx") from error
    except (OSError, ValueError, RecursionError) as error:
        message = f"{file} cannot be read: {error}."
        raise ModelFileInvalid(message, field="path", remedy=remedy, plugin="onnx") from error
    if not isinstance(content, dict):
        message = f"{file} holds no JSON object."
        raise ModelFileInvalid(message, field="path", remedy=remedy, plugin="onnx")
    return content


def _around(file: Path) -> ModelFiles:
    """The model of a file that was named; what belongs to it is beside it, or one level up."""
    root = file.parent
    if not (root / "tokenizer.json").exists() and (root.parent / "tokenizer.json").exists():
        root = root.parent
    return ModelFiles(
        onnx_file.read(file), root, read_json(root / "config.json"), read_json(root / _GENAI)
    )


def _files(file: Path, root: Path) -> ModelFiles:
    config = read_json(root / "config.json", required=True)
    return ModelFiles(onnx_file.read(file), root, config, {})


def _genai(folder: Path, variant: str | None) -> ModelFiles:
    if variant is not None:
        raise _needless(f"{variant!r}, but {folder} has one model only")
    genai = read_json(folder / _GENAI)
    model = genai.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    name = decoder.get("filename") if isinstance(decoder, dict) else None
    if isinstance(model, dict) and "encoder" in model:
        raise unfit("it has an encoder and a decoder")
    if isinstance(decoder, dict) and isinstance(decoder.get("pipeline"), list):
        raise unfit("its decoder is a pipeline of several graphs")
    if not isinstance(name, str) or Path(name).name != name:
        raise ModelFileInvalid(
            f"{folder / _GENAI} names no file as model.decoder.filename.",
            field="path",
            remedy="Download or export the model again.",
            plugin="onnx",
        )
    config = read_json(folder / "config.json")
    return ModelFiles(onnx_file.read(folder / name), folder, config, genai)


def _variants(folder: Path) -> dict[str, Path]:
    """The graphs of a folder by variant."""
    if not folder.is_dir():
        return {}
    found = {}
    for file in sorted(folder.glob("*.onnx")):
        match = _MODEL.fullmatch(file.name)
        if match:
            found[match[1] or _FULL] = file
    return found


def _choose(folder: Path, found: dict[str, Path], variant: str | None, provider: str) -> Path:
    if variant is not None:
        if variant not in found:
            raise _unknown_variant(variant, folder, list(found))
        return found[variant]
    if len(found) == 1:
        return next(iter(found.values()))
    root = folder.parent if folder.name == "onnx" else folder
    declared = read_json(root / "config.json").get("transformers.js_config")
    wanted = declared.get("dtype") if isinstance(declared, dict) else None
    if isinstance(wanted, str) and wanted in found:
        return found[wanted]
    order = _ON_CPU if provider == "cpu" else _ON_GPU
    first = next((found[name] for name in order if name in found), next(iter(found.values())))
    if any(name.startswith("past") for name in onnx_file.read(first).inputs):
        return first
    # Vectors suffer from coarse numbers more than answers do, and encoders are small.
    return next((found[name] for name in _ENCODER if name in found), first)


def _nested(path: Path) -> list[Path]:
    found: list[Path] = []
    level = [path]
    for _ in range(_NESTED):
        level = [f for folder in level for f in sorted(folder.iterdir()) if f.is_dir()]
        found += [folder for folder in level if (folder / _GENAI).exists()]
    return found


def _choose_folder(path: Path, folders: list[Path], variant: str | None) -> Path:
    names = {folder.relative_to(path).as_posix(): folder for folder in folders}
    if variant is not None:
        fitting = [f for n, f in names.items() if variant == n or n.startswith(f"{variant}/")]
        if len(fitting) != 1:
            raise _unknown_variant(variant, path, list(names))
        return fitting[0]
    if len(names) > 1:
        raise ModelLoadFailed(
            f"{path} has several models: {', '.join(names)}.",
            field="variant",
            remedy="Set variant to one of them.",
            plugin="onnx",
        )
    return folders[0]


def _nothing_found(path: Path) -> ModelFileInvalid | ModelLoadFailed:
    folders = [folder for folder in (path / "onnx", path) if folder.is_dir()]
    names = [file.stem for folder in folders for file in sorted(folder.glob("*.onnx"))]
    for name in names:
        for beginning, why in _SPLIT.items():
            if name.startswith(beginning):
                return unfit(why)
    if names:
        return unfit(f"of its graphs ({', '.join(names)}) none is named model.onnx")
    others = sorted(file.name for file in path.iterdir())[:8]
    return ModelFileInvalid(
        f"{path} has no .onnx file; it has {', '.join(others) or 'nothing'}.",
        field="path",
        remedy="Export the model to ONNX, or name the directory that has it.",
        plugin="onnx",
    )


def _unknown_variant(variant: str, folder: Path, known: list[str]) -> ModelLoadFailed:
    return ModelLoadFailed(
        f"variant is {variant!r}, but {folder} has: {', '.join(known)}.",
        field="variant",
        remedy="Set variant to one of them.",
        plugin="onnx",
    )


def _near(path: Path) -> str | None:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, 1)
    return f"Did you mean {near[0]!r}?" if near else None


def _needless(why: str) -> ModelLoadFailed:
    return ModelLoadFailed(
        f"variant is {why}.", field="variant", remedy="Leave variant out.", plugin="onnx"
    )


def unfit(why: str) -> ModelLoadFailed:
    """The model is of a kind that cannot be run here."""
    return ModelLoadFailed(
        f"The onnx backend cannot run this model: {why}.",
        field="path",
        remedy="Use an export of a decoder in one graph with its KV cache, or of an encoder.",
        plugin="onnx",
    )
