"""Tells models apart whose KV caches must not be mixed."""

from __future__ import annotations

import hashlib
import re
from importlib import metadata
from pathlib import Path

import msgspec

from themis_llamacpp import gguf_header
from themis_llamacpp.gguf_header import Header
from themis_llamacpp.settings import LlamaCppSettings

_SAMPLE = 4096  # bytes of each tensor
# Settings that change what is in the KV cache, or how llama.cpp lays a saved state out.
_SETTINGS = ("kv_type", "kv_unified", "flash_attention", "gpu_layers")


def fingerprint(path: Path, header: Header, settings: LlamaCppSettings, sequences: int) -> str:
    """A hash of the model's files and of everything else that decides about its KV cache.

    Of each file: its size, the whole header (architecture, RoPE, tokenizer, tensor names and
    places), and 4 KiB from the middle of each tensor: milliseconds, where reading all would take
    seconds a gigabyte. So another model, training, quantisation or conversion always differs; a
    change of single bytes within a tensor, beside the middle, is not seen. It is no proof against
    somebody who forges a file.
    """
    made = hashlib.blake2b(digest_size=16)
    values = msgspec.structs.asdict(settings)
    facts = [f"llama-cpp-python {metadata.version('llama-cpp-python')}"]
    facts += [f"{name} {values[name]}" for name in _SETTINGS]
    if not settings.kv_unified:
        facts.append(f"streams {sequences}")
    made.update("\n".join(facts).encode())
    for file in _parts(path, header):
        own = header if file == path else gguf_header.read(file)
        made.update(b"%d" % file.stat().st_size)
        with file.open("rb") as stream:
            made.update(stream.read(own.data_start))
            for tensor in sorted(own.tensors.values(), key=lambda t: t.start):
                stream.seek(tensor.start + max(0, tensor.length - _SAMPLE) // 2)
                made.update(stream.read(min(_SAMPLE, tensor.length)))
    return made.hexdigest()


def _parts(path: Path, header: Header) -> list[Path]:
    """The files of a model in several parts, which `gguf_header.check` has found to be there."""
    match = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", path.name)
    count = header.metadata.get("split.count", 1)
    if match is None or count < 2:
        return [path]
    return [path.with_name(f"{match[1]}-{i:05}-of-{match[2]}.gguf") for i in range(1, count + 1)]
