"""What a graph takes and gives, as far as it decides how it must be run."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from themis_onnx.directory import ModelFiles, unfit

Layout = Literal["shared", "concatenated"]

# ONNX Runtime's names of types: numpy's type for them, and the number in TensorProto.DataType.
# numpy has no bfloat16; its bits are kept as whole numbers.
TYPES: dict[str, tuple[Any, int]] = {
    "tensor(float)": (np.float32, 1),
    "tensor(float16)": (np.float16, 10),
    "tensor(bfloat16)": (np.uint16, 16),
}
_PAST = re.compile(r"past[a-z_]*[._](\d+)[._](key|value)")
_PRESENT = re.compile(r"present[a-z_]*[._](\d+)[._](key|value)")
_PLAIN = {"input_ids", "attention_mask", "position_ids", "num_logits_to_keep"}
_ENCODER = {"input_ids", "attention_mask", "token_type_ids", "position_ids"}
_STATES = ("last_hidden_state", "token_embeddings", "sentence_embedding")
_REFUSED = {
    "use_cache_branch": "its decoder is merged from two graphs (use_cache_branch)",
    "encoder_hidden_states": "it has an encoder and a decoder",
    "encoder_attention_mask": "it has an encoder and a decoder",
    "decoder_input_ids": "it has an encoder and a decoder",
    "block_table": "it is exported for a paged KV cache, which only CUDA computes",
    "cumulative_sequence_length": "it is exported for a paged KV cache, which only CUDA computes",
    "inputs_embeds": "it takes embeddings instead of token ids, as multimodal models do",
}


@dataclass(frozen=True, slots=True)
class Cached:
    """One of the tensors of the KV cache: its names, and (heads, head size)."""

    past: str
    present: str
    heads: int
    size: int
    kind: str  # A key of TYPES.


@dataclass(frozen=True, slots=True)
class Signature:
    """A decoder's graph. `keeps` is true if it is told how many logits are wanted."""

    layout: Layout
    cache: tuple[Cached, ...]
    logits_kind: str
    mask: bool
    positions: bool
    keeps: bool
    kinds: dict[str, str] = field(default_factory=dict)

    @property
    def bytes_per_token(self) -> int:
        """Of KV cache, for one token."""
        return sum(c.heads * c.size * np.dtype(TYPES[c.kind][0]).itemsize for c in self.cache)


def is_encoder(files: ModelFiles) -> bool:
    """True if the graph gives states of whole texts. Raises `ModelLoadFailed` for what no
    runner can run."""
    inputs, outputs = files.graph.inputs, files.graph.outputs
    for name, why in _REFUSED.items():
        if name in inputs and not (name == "inputs_embeds" and "input_ids" in inputs):
            raise unfit(why)
    if any(name.startswith("past") for name in inputs):
        return False
    if any(name in outputs for name in _STATES):
        return True
    if "logits" in outputs:
        raise unfit(
            "it has logits but no KV cache: it was exported without past, or is a classifier"
        )
    raise unfit(f"its outputs are {', '.join(outputs)}")


def decoder_signature(files: ModelFiles, session: Any) -> Signature:
    """The signature of a decoder. Raises `ModelLoadFailed`, with the reason, if it is unfit."""
    inputs = {given.name: given for given in session.get_inputs()}
    outputs = {given.name: given for given in session.get_outputs()}
    past = {m.groups(): name for name in inputs if (m := _PAST.fullmatch(name))}
    present = {m.groups(): name for name in outputs if (m := _PRESENT.fullmatch(name))}
    ours = {name for name in inputs if name.startswith("lora.")}  # See lora_graph.
    unknown = sorted(set(inputs) - _PLAIN - set(past.values()) - ours)
    states = [name for name in unknown if name.startswith("past")]
    if states:
        raise unfit(f"it has a state that is no KV cache ({states[0]}), as hybrid models have")
    if unknown:
        raise unfit(f"it wants inputs that are unknown here: {', '.join(unknown)}")
    if "input_ids" not in inputs or "logits" not in outputs:
        raise unfit("it has no input_ids or no logits")
    if len(inputs["input_ids"].shape) != 2:
        raise unfit("its input_ids have one dimension only, as paged exports have")
    if not past or past.keys() != present.keys():
        raise unfit("its past and present tensors do not match")
    heads, size = declared_heads(files)
    cache = []
    for key in sorted(past, key=lambda k: (int(k[0]), k[1])):
        given, shape = inputs[past[key]], inputs[past[key]].shape
        if given.type not in TYPES:
            raise unfit(f"its KV cache is stored as {given.type}")
        if len(shape) != 4:
            raise unfit(f"its KV cache has {len(shape)} dimensions instead of 4")
        cache.append(
            Cached(
                past=past[key],
                present=present[key],
                heads=_number(shape[1], heads, "number of KV heads"),
                size=_number(shape[3], size, "head size"),
                kind=given.type,
            )
        )
    kind = outputs["logits"].type
    if kind not in TYPES:
        raise unfit(f"its logits are {kind}")
    return Signature(
        layout="shared" if "GroupQueryAttention" in files.graph.ops else "concatenated",
        cache=tuple(cache),
        logits_kind=kind,
        mask="attention_mask" in inputs,
        positions="position_ids" in inputs,
        keeps="num_logits_to_keep" in inputs,
        kinds={name: given.type for name, given in inputs.items()},
    )


def encoder_output(session: Any) -> str:
    """The output to use. Raises `ModelLoadFailed` for unknown inputs."""
    unknown = sorted({given.name for given in session.get_inputs()} - _ENCODER)
    if unknown:
        raise unfit(f"it wants inputs that are unknown here: {', '.join(unknown)}")
    outputs = [given.name for given in session.get_outputs()]
    return next(name for name in _STATES if name in outputs)


def trained_context(files: ModelFiles) -> int | None:
    """Most tokens that the model was made for, if the directory says it."""
    model = files.genai.get("model")
    places = [model if isinstance(model, dict) else {}, text_config(files.config)]
    names = ("context_length", "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
    for place in places:
        for name in names:
            if type(place.get(name)) is int and place[name] > 0:
                return int(place[name])
    return None


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of config.json about text; multimodal models have it apart."""
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


def declared_heads(files: ModelFiles) -> tuple[int | None, int | None]:
    """KV heads and head size, as far as the directory says them."""
    model = files.genai.get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    genai: dict[str, Any] = decoder if isinstance(decoder, dict) else {}
    config = text_config(files.config)

    def first(*values: Any) -> int | None:
        return next((v for v in values if type(v) is int and v > 0), None)

    queries = first(genai.get("num_attention_heads"), config.get("num_attention_heads"))
    hidden = first(genai.get("hidden_size"), config.get("hidden_size"))
    heads = first(genai.get("num_key_value_heads"), config.get("num_key_value_heads"), queries)
    size = first(genai.get("head_size"), config.get("head_dim"))
    if size is None and hidden and queries:
        size = hidden // queries
    return heads, size


def _number(given: Any, declared: int | None, what: str) -> int:
    if type(given) is int and given > 0:
        return given
    if declared is None:
        raise unfit(f"neither its graph nor its configuration says the {what}")
    return declared
