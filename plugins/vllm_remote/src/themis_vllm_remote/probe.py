"""Whether a server takes llguidance grammars: one token, asked for when the backend starts."""

from __future__ import annotations

from contextlib import aclosing

from themis_core.errors import ModelLoadFailed, ThemisError
from themis_core.messages import GenerateRequest, SamplingParams
from themis_vllm_remote.door import Door, Order

# No other grammar language has %json, so only llguidance can accept it.
_GRAMMAR = '%llguidance {}\nstart: %json {"type": "boolean"}'


async def check_grammars(door: Door) -> None:
    """Raises `ModelLoadFailed` if it does not."""
    request = GenerateRequest(prompt=(1,), sampling=SamplingParams(max_tokens=1, temperature=0.0))
    order = Order(request=request, ids=[1], limit=1, structured={"grammar": _GRAMMAR})
    try:
        async with aclosing(door.generate(order)) as stream:
            async for _ in stream:
                pass
    except ThemisError as error:
        raise ModelLoadFailed(
            f"The server takes no llguidance grammars. {error.message}",
            field="structured",
            remedy='Start it with --structured-outputs-config \'{"backend": "guidance"}\', or '
            'set structured = "native".',
            plugin="vllm",
        ) from error
