"""`EngineWorkerBackend`: the backend `vllm_engine`, which fails for good when its engine dies."""

from __future__ import annotations

import asyncio
from pathlib import Path

from themis_core.messages import ModelInfo
from themis_engine.hf_tokenizer import HfTokenizer
from themis_vllm_remote.backend import VllmBackend
from themis_vllm_remote.door import Facts
from themis_vllm_remote.engine.door import EngineDoor
from themis_vllm_remote.fields import CARRIED
from themis_vllm_remote.local_texts import LocalTexts
from themis_vllm_remote.settings import EngineSettings
from themis_vllm_remote.texts import Texts


class EngineWorkerBackend(VllmBackend):
    """As `VllmBackend`; `info` says when the engine is of no more use."""

    def __init__(self, door: EngineDoor, path: str) -> None:
        async def texts(facts: Facts) -> tuple[Facts, Texts]:
            # In a thread: large vocabularies take a second.
            folder = await asyncio.to_thread(Path(path).expanduser)
            tokenizer = await asyncio.to_thread(HfTokenizer, folder)
            return facts, LocalTexts(tokenizer, facts, "guidance", "vllm_engine")

        super().__init__(door, texts, plugin="vllm_engine", fields=CARRIED["engine"])
        self._engine = door

    @property
    def info(self) -> ModelInfo:
        """Facts. Raises `BackendFailed` once the engine has died."""
        info = super().info
        failure = self._engine.failure
        if failure is not None:
            raise failure
        return info


def create(settings: EngineSettings) -> EngineWorkerBackend:
    """The backend of a model directory."""
    return EngineWorkerBackend(EngineDoor(settings), settings.path)
