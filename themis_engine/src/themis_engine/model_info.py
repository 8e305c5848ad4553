"""What a runner in an engine can do, in the core's words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from themis_core.messages import Capabilities, ModelInfo
from themis_engine.runner import AdapterRunner, EmbeddingRunner, ModelRunner

if TYPE_CHECKING:
    from themis_engine.intake import Intake

_ALWAYS = frozenset(
    {
        "prompt_token_ids",
        "priority",
        "cache_salt",
        "resume_token_ids",
        "truncate_prompt_tokens",
        "constraint",
        "sampling.min_tokens",
        "sampling.temperature",
        "sampling.top_k",
        "sampling.top_p",
        "sampling.min_p",
        "sampling.typical_p",
        "sampling.repetition_penalty",
        "sampling.frequency_penalty",
        "sampling.presence_penalty",
        "sampling.logit_bias",
        "sampling.seed",
        "sampling.n",
        "sampling.logprobs",
        "sampling.stop_token_ids",
        "sampling.ignore_eos",
    }
)
CHAT_FIELDS = frozenset({"messages", "template_options"})
TOOL_FIELDS = frozenset({"tools", "tool_choice", "parallel_tool_calls"})


def describe(runner: ModelRunner, backend: str, intake: Intake) -> ModelInfo:
    """Facts and capabilities."""
    info = runner.info
    adapters = isinstance(runner, AdapterRunner)
    fields = _ALWAYS
    if intake.chat:
        fields |= CHAT_FIELDS
    if intake.tools:
        fields |= TOOL_FIELDS
    if adapters:
        fields |= {"adapters"}
    return ModelInfo(
        backend=backend,
        context_length=info.context_length,
        vocab_size=info.vocab_size,
        parameters=info.parameters,
        size_bytes=info.size_bytes,
        description=info.description,
        capabilities=Capabilities(
            generate=info.causal,
            embed=isinstance(runner, EmbeddingRunner) and info.embedding_size > 0,
            tokenize=True,
            adapters=adapters,
            batch_invariant=info.batch_invariant,
            request_fields=fields if info.causal else frozenset(),
        ),
    )
