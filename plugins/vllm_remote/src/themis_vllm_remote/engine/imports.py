"""What is used of vLLM. Importing it takes many seconds, so this happens late, and in a thread."""

from __future__ import annotations

from themis_core.errors import ModelLoadFailed


class Vllm:
    """The names, and whether it computes on the CPU."""

    def __init__(self) -> None:
        import vllm
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform
        from vllm.sampling_params import (
            RequestOutputKind,
            SamplingParams,
            StructuredOutputsParams,
        )
        from vllm.v1.engine.async_llm import AsyncLLM

        self.version: str = vllm.__version__
        self.on_cpu: bool = current_platform.is_cpu()
        self.AsyncEngineArgs = AsyncEngineArgs
        self.AsyncLLM = AsyncLLM
        self.LoRARequest = LoRARequest
        self.RequestOutputKind = RequestOutputKind
        self.SamplingParams = SamplingParams
        self.StructuredOutputsParams = StructuredOutputsParams


def import_vllm() -> Vllm:
    """Raises `ModelLoadFailed` if vLLM is not installed."""
    try:
        return Vllm()
    except ImportError as error:
        raise ModelLoadFailed(
            f"vLLM cannot be imported: {error}.",
            remedy="Install themis-vllm-remote[engine] beside the GPU.",
            plugin="vllm_engine",
        ) from error
