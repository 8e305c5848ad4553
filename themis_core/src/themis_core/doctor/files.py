"""The files of models: there, readable, and with the hash by which they can be compared."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from themis_core.doctor.configured import Model
from themis_core.hooks import Finding

_PIECE = 1 << 24  # Bytes read at once.
_STEP = 1 << 30  # Bytes between two words about progress.


def model_files(
    models: Iterable[Model], hashes: bool, progress: Callable[[str], None]
) -> list[Finding]:
    """A finding for each file that the models' settings name; of folders, for each file in it."""
    found: dict[Path, Finding] = {}
    for model in models:
        for key, text in model.paths.items():
            path = Path(text).expanduser()
            if "://" in text or stat.S_ISSOCK(_mode(path)):
                continue
            files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            for file in files:
                if file not in found:
                    found[file] = _file(file, f"models.{model.name}.{key}", hashes, progress)
    return list(found.values())


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def _file(path: Path, key: str, hashes: bool, progress: Callable[[str], None]) -> Finding:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.sha256()
            done = 0
            while hashes and (piece := file.read(_PIECE)):
                digest.update(piece)
                if done // _STEP != (done := done + len(piece)) // _STEP:
                    progress(f"hashing {path.name}: {done / size:.0%}")
    except OSError as error:
        return Finding(
            level="error",
            subject=str(path),
            message=f"{key} cannot be read: {error.strerror}.",
            remedy="Correct the path, or let this user read the file.",
        )
    told = f", sha256 {digest.hexdigest()}" if hashes else ""
    return Finding(
        level="ok",
        subject=str(path),
        message=f"{_human(size)}{told}.",
        data={"bytes": size, "sha256": digest.hexdigest() if hashes else None},
    )


def _human(size: int) -> str:
    if size < 10_000:
        return f"{size} bytes"
    return f"{size / 2**20:,.1f} MiB" if size < 2**30 else f"{size / 2**30:,.2f} GiB"
