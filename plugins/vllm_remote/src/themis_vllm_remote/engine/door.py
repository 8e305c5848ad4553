"""`EngineDoor`: vLLM's `AsyncLLM`, whose engine is a process beside this one."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from themis_core.errors import (
    AdapterNotFound,
    BackendClosed,
    BackendFailed,
    InvalidRequest,
    ModelFileInvalid,
    ModelLoadFailed,
    ThemisError,
    UnsupportedField,
)
from themis_core.messages import ChatMessage, Tool
from themis_vllm_remote.door import Embedded, Facts, Load, Order, Piece
from themis_vllm_remote.engine.adapter_files import check_adapter
from themis_vllm_remote.engine.imports import import_vllm
from themis_vllm_remote.engine.process import Surroundings
from themis_vllm_remote.settings import EngineSettings

_PLUGIN = "vllm_engine"
# Seconds that requests wait when the engine has died. A worker sees it sooner, and hangs up: then
# its supervisor goes on with them elsewhere, which it could not after an error.
_LAST_WORDS = 2.0
_OURS = ("model", "max_model_len", "max_num_seqs", "dtype", "skip_tokenizer_init")


class EngineDoor:
    """Started once; used on the event loop that started it."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._llm: Any = None
        self._vllm: Any = None
        self._surroundings: Surroundings | None = None
        self._adapters: dict[str, Any] = {}
        self._numbers = itertools.count(1)
        self._changing = asyncio.Lock()  # Of adapters: one at a time, or there may be too many.

    @property
    def where(self) -> str:
        """The model's directory."""
        return self._settings.path

    @property
    def failure(self) -> ThemisError | None:
        """Why the engine is of no more use, if it is not."""
        if self._llm is not None and self._llm.errored:
            return BackendFailed(
                "vLLM's engine has died.",
                remedy="Its log says why; the worker has to be started again.",
                plugin=_PLUGIN,
            )
        return None

    async def open(self) -> Facts:
        """Load the model. The event loop does not run meanwhile, except while vLLM is imported."""
        settings = self._settings
        path = await asyncio.to_thread(_directory, settings.path)
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        self._vllm = await asyncio.to_thread(import_vllm)
        self._surroundings = Surroundings()
        try:
            with self._surroundings.starting():
                self._llm = self._vllm.AsyncLLM.from_engine_args(self._arguments(path))
            for name, folder in settings.adapters.items():
                await self.load_adapter(name, folder)
        except ThemisError:
            self._surroundings.kill()
            raise
        # vLLM raises whatever its parts raise; all of it means that the model does not load.
        except Exception as error:
            self._surroundings.kill()
            reason = " ".join(str(error).split())[:1000]
            raise ModelLoadFailed(
                f"vLLM cannot load {path}: {reason}",
                field="path",
                remedy="Its log above says more.",
                plugin=_PLUGIN,
            ) from error
        config = self._llm.model_config
        return Facts(
            model=path.name,
            context=config.max_model_len,
            vocab_size=config.get_vocab_size(),
            version=self._vllm.version,
            adapters=tuple(self._adapters),
            takes_adapters=settings.max_adapters > 0,
        )

    async def generate(self, order: Order) -> AsyncGenerator[list[Piece], None]:
        """Straight from the engine; closing it aborts the request there."""
        llm = self._started()
        request_id = f"{order.request.request_id}-{secrets.token_hex(4)}"
        prompt: dict[str, Any] = {"prompt_token_ids": order.ids}
        if order.salt is not None:
            prompt["cache_salt"] = order.salt
        adapter = None if order.adapter is None else self._find(order.adapter)
        try:
            params = self._params(order)
        except ValueError as error:  # Values that do not go together, which vLLM finds out.
            raise self._translated(error) from error
        outputs = llm.generate(prompt, params, request_id, lora_request=adapter)
        try:
            while True:
                try:
                    output = await anext(outputs, None)
                except asyncio.CancelledError:
                    raise
                # vLLM's errors have no common class: the engine's death is told apart by itself.
                except Exception as error:
                    if self.failure is not None:
                        await asyncio.sleep(_LAST_WORDS)
                    raise self._translated(error) from error
                if output is None:
                    return
                yield [
                    _piece(each, output.num_cached_tokens or 0, len(order.ids or ()))
                    for each in output.outputs
                ]
        finally:
            await outputs.aclose()

    async def embed(self, inputs: Sequence[str | Sequence[int]]) -> Embedded:
        """Not here: the engine is one that generates."""
        raise UnsupportedField("This engine gives no embeddings.", field="inputs", plugin=_PLUGIN)

    async def encode(
        self,
        prompt: str | Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        options: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Not here: the tokenizer is Themis's."""
        raise UnsupportedField("The engine takes token ids.", field="prompt", plugin=_PLUGIN)

    async def decode(self, ids: Sequence[int]) -> str:
        """Not here either."""
        raise UnsupportedField("The engine gives token ids.", field="token_ids", plugin=_PLUGIN)

    async def load_adapter(self, name: str, path: str) -> None:
        """Raises `ModelFileInvalid` before a broken file gets near the engine."""
        async with self._changing:
            await self._load_adapter(name, path)

    async def unload_adapter(self, name: str) -> None:
        """Out of the engine's memory."""
        async with self._changing:
            request = self._find(name)
            try:
                await self._started().remove_lora(request.lora_int_id)
            # As in `generate`.
            except Exception as error:
                raise self._translated(error) from error
            del self._adapters[name]

    async def load(self) -> Load:
        """Not known: only this backend uses the engine."""
        return Load()

    async def back(self) -> None:
        """An engine does not come back."""
        if self.failure is not None:
            raise self.failure

    async def aclose(self) -> None:
        """End the engine's processes."""
        llm, self._llm = self._llm, None
        surroundings, self._surroundings = self._surroundings, None
        if llm is not None:
            llm.shutdown()
        if surroundings is not None:
            await asyncio.to_thread(surroundings.end)

    # --- inside ----------------------------------------------------------------------------------

    async def _load_adapter(self, name: str, path: str) -> None:
        llm = self._started()
        self._check_room()
        await asyncio.to_thread(check_adapter, path, self._settings.max_adapter_rank)
        request = self._vllm.LoRARequest(name, next(self._numbers), path)
        try:
            loaded = await llm.add_lora(request)
        # As in `generate`.
        except Exception as error:
            translated = self._translated(error)
            if isinstance(translated, BackendFailed | BackendClosed) and self.failure:
                raise translated from error
            raise _unloadable(path, str(error)) from error
        if not loaded:
            raise _unloadable(path, "vLLM refuses it")
        self._adapters[name] = request

    def _check_room(self) -> None:
        """On a CPU, vLLM computes requests without an adapter with the last slot's: it stays empty.

        `vllm/lora/ops/torch_ops/lora_ops.py` takes the index -1, which means none, for the last.
        """
        if self._vllm.on_cpu and len(self._adapters) >= self._settings.max_adapters:
            raise InvalidRequest(
                f"{len(self._adapters)} adapters are loaded, and on a CPU no more than "
                f"max_adapters = {self._settings.max_adapters} can be.",
                field="name",
                remedy="Unload one, or raise max_adapters.",
                plugin=_PLUGIN,
            )

    def _arguments(self, path: Path) -> Any:
        settings = self._settings
        wrong = next((name for name in _OURS if name in settings.engine), None)
        if wrong is not None:
            raise ModelLoadFailed(
                f"engine.{wrong} is decided by a setting of its own.",
                field=f"engine.{wrong}",
                remedy="Use path, context, parallel or dtype.",
                plugin=_PLUGIN,
            )
        given: dict[str, Any] = {
            "disable_log_stats": True,
            "generation_config": "vllm",
            "structured_outputs_config": {"backend": "guidance"},
        }
        if settings.max_adapters:
            given |= {
                "enable_lora": True,
                # The last one stays empty on a CPU, see `_check_room`.
                "max_loras": settings.max_adapters + self._vllm.on_cpu,
                "max_lora_rank": settings.max_adapter_rank,
                "max_cpu_loras": max(settings.max_adapters + self._vllm.on_cpu, 8),
            }
        given |= settings.engine
        return self._vllm.AsyncEngineArgs(
            model=str(path),
            max_model_len=settings.context,
            max_num_seqs=settings.parallel,
            dtype=settings.dtype,
            **given,
        )

    def _params(self, order: Order) -> Any:
        vllm, params = self._vllm, order.request.sampling
        structured = order.structured
        return vllm.SamplingParams(
            n=params.n,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            min_p=params.min_p,
            repetition_penalty=params.repetition_penalty,
            frequency_penalty=params.frequency_penalty,
            presence_penalty=params.presence_penalty,
            seed=None if params.seed is None else params.seed % 2**62,
            max_tokens=order.limit,
            min_tokens=params.min_tokens,
            stop_token_ids=list(params.stop_token_ids),
            ignore_eos=params.ignore_eos,
            logprobs=params.logprobs,
            logit_bias=dict(params.logit_bias) or None,
            structured_outputs=(
                None if structured is None else vllm.StructuredOutputsParams(**structured)
            ),
            detokenize=False,
            output_kind=vllm.RequestOutputKind.DELTA,
        )

    def _find(self, name: str) -> Any:
        found = self._adapters.get(name)
        if found is None:
            raise AdapterNotFound(
                f"No adapter {name!r} is loaded.", field="adapters", plugin=_PLUGIN
            )
        return found

    def _translated(self, error: Exception) -> ThemisError:
        if self._llm is None:
            return BackendClosed("The backend is not running.", plugin=_PLUGIN)
        dead = self.failure
        if dead is not None:
            return dead
        if isinstance(error, ValueError):
            return InvalidRequest(
                f"vLLM refuses the request: {error}", field="prompt", plugin=_PLUGIN
            )
        return BackendFailed(f"vLLM failed: {error!r}.", plugin=_PLUGIN)

    def _started(self) -> Any:
        if self._llm is None:
            raise BackendClosed("The backend is not running.", plugin=_PLUGIN)
        return self._llm


def _directory(given: str) -> Path:
    path = Path(given).expanduser()
    if not (path / "config.json").is_file():
        raise ModelFileInvalid(
            f"{path} is no model directory: it has no config.json.", field="path", plugin=_PLUGIN
        )
    return path


def _piece(output: Any, cached: int, prompt: int) -> Piece:
    stop = output.stop_reason
    return Piece(
        index=output.index,
        token_ids=tuple(output.token_ids),
        logprobs=() if output.logprobs is None else list(_logprobs(output)),
        reason=output.finish_reason,
        stop_id=stop if isinstance(stop, int) else None,
        prompt_tokens=prompt,
        cached_tokens=cached,
    )


def _logprobs(output: Any) -> Iterable[tuple[float, list[tuple[int, float]]]]:
    for token, found in zip(output.token_ids, output.logprobs, strict=True):
        yield found[token].logprob, [(i, each.logprob) for i, each in found.items()]


def _unloadable(path: str, why: str) -> ModelFileInvalid:
    return ModelFileInvalid(
        f"vLLM cannot load the adapter {path!r}: {' '.join(why.split())[:500]}",
        field="path",
        plugin=_PLUGIN,
    )
