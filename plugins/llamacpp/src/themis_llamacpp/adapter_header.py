"""Checks a LoRA adapter's header before llama.cpp sees the file.

llama.cpp names most causes itself, but ends the process at some values of a wrong type or shape,
and passes over some things in silence: those are refused here.
"""

from __future__ import annotations

from pathlib import Path

from themis_llamacpp import gguf_header
from themis_llamacpp.gguf_header import Header, Tensor, invalid

_CONVERT = "Convert a PEFT folder to GGUF with llama.cpp's convert_lora_to_gguf.py."
# GGUF value types that llama.cpp takes for granted.
_TYPES = {
    "general.type": 8,
    "general.architecture": 8,
    "adapter.type": 8,
    "adapter.lora.alpha": 6,
}
# Metadata that asks for something which is not done here, and what it asks for.
_NOT_HONOURED = {
    "adapter.alora.invocation_tokens": "is to apply only after its invocation tokens (an aLoRA)",
    "adapter.lora.prompt_prefix": "is to be used with a prompt prefix of its own",
}
_NOT_FLOAT = {24, 25, 26, 27}  # ggml's integers
_EMBEDDING = "token_embd.weight"


def check(path: Path, base: Header) -> None:
    """Refuse what is no adapter for the model that `base` describes.

    Raises `ModelFileInvalid` with cause and remedy.
    """
    if (path / "adapter_config.json").exists():
        invalid(path, "it is a PEFT folder", _CONVERT)
    header = gguf_header.read(path)
    metadata = header.metadata
    kind = metadata.get("general.type")
    if kind == "model" or (kind is None and "tokenizer.ggml.model" in metadata):
        invalid(path, "it is a whole model, not an adapter", "Give the adapter's file here.")
    for key, expected in _TYPES.items():
        if key not in metadata:
            invalid(path, f"it is no adapter: its header has no {key}")
        if header.types[key] != expected:
            invalid(path, f"its header has {key} as {metadata[key]!r}", "Convert it again.")
    for key, found in (("general.type", "adapter"), ("adapter.type", "lora")):
        if metadata[key] != found:
            invalid(path, f"its {key} is {metadata[key]!r}, not {found!r}")
    mine, theirs = metadata["general.architecture"], base.metadata["general.architecture"]
    if mine != theirs:
        invalid(path, f"it is for models of architecture {mine!r}, but this one is {theirs!r}")
    for key, meaning in _NOT_HONOURED.items():
        if metadata.get(key):
            invalid(path, f"it {meaning}, which is not supported")
    _check_tensors(path, header, base)


def _check_tensors(path: Path, header: Header, base: Header) -> None:
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in header.tensors.items():
        target, _, part = name.rpartition(".")
        if part not in ("lora_a", "lora_b"):
            invalid(path, f"its tensor {name!r} is no part of a LoRA and would have no effect")
        if tensor.kind in _NOT_FLOAT or len(tensor.sizes) < 2:
            invalid(path, f"its tensor {name!r} has no form that can be applied")
        pairs.setdefault(target, {})[part] = tensor
    if not pairs:
        invalid(path, "it has no weights")
    for target, parts in pairs.items():
        if len(parts) < 2:
            invalid(path, f"of the pair for {target!r} it has only {next(iter(parts))}")
        rank = parts["lora_b"].sizes[0]
        # The pair of the embedding lies the other way round: its A is looked up, not multiplied.
        other = parts["lora_a"].sizes[0 if target == _EMBEDDING else 1]
        if rank != other or rank < 1:
            invalid(path, f"the pair for {target!r} has ranks {other} and {rank}")
        _check_target(path, target, base)


def _check_target(path: Path, target: str, base: Header) -> None:
    """llama.cpp checks that the tensor is there with these sizes; here is what it does not."""
    tensor = base.tensors.get(target)
    if tensor is not None and len(tensor.sizes) < 2:
        invalid(path, f"it changes {target!r}, which is no matrix, so it would have no effect")
    # Where the embedding is the output matrix too, llama.cpp would multiply with the pair as it
    # lies for looking up, and end the process.
    if target == _EMBEDDING and "output.weight" not in base.tensors:
        invalid(path, "it changes the token embedding of a model that has no output matrix apart")
