"""The tokenizer files that a gRPC server sends: a ZIP archive in pieces, with its SHA-256."""

from __future__ import annotations

import hashlib
import io
import tempfile
import zipfile
from pathlib import Path

from themis_core.errors import ModelFileInvalid, ModelLoadFailed
from themis_engine.hf_tokenizer import HfTokenizer

_LARGEST = 512 << 20  # Bytes, packed and unpacked.
_WANTED = frozenset(
    {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "config.json",
    }
)


def unpack(archive: bytes, digest: str, where: str) -> HfTokenizer:
    """The tokenizer in an archive. Nothing of it stays on the disk. Raises `ModelLoadFailed`."""
    if digest and hashlib.sha256(archive).hexdigest() != digest:
        raise _unusable(where, "their SHA-256 is another one than it says")
    try:
        with tempfile.TemporaryDirectory(prefix="themis-vllm-") as folder:
            _extract(archive, Path(folder), where)
            return HfTokenizer(Path(folder))
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise _unusable(where, str(error)) from error
    except ModelFileInvalid as error:
        raise _unusable(where, error.message) from error


def _extract(archive: bytes, folder: Path, where: str) -> None:
    """Only files that are wanted, by their own name: an archive's paths are not trusted."""
    left = _LARGEST
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        for entry in opened.infolist():
            name = Path(entry.filename).name
            if name not in _WANTED or (folder / name).exists():
                continue
            left -= entry.file_size
            if left < 0:
                raise _unusable(where, "they are too large")
            with opened.open(entry) as file:
                (folder / name).write_bytes(file.read(entry.file_size + 1))


def too_large(size: int) -> bool:
    """Whether an archive is larger than any tokenizer."""
    return size > _LARGEST


def _unusable(where: str, why: str) -> ModelLoadFailed:
    return ModelLoadFailed(
        f"The tokenizer files of vLLM at {where} cannot be used: {why}.",
        field="tokenizer",
        remedy="Give the model's tokenizer files with the setting tokenizer.",
        plugin="vllm",
    )
