"""Which optional fields a request uses, and whether a backend declares them."""

from __future__ import annotations

import msgspec

from themis_core.errors import UnsupportedField
from themis_core.messages import (
    OPTIONAL_FIELDS,
    GenerateRequest,
    ModelInfo,
    SamplingParams,
)

_DEFAULTS = SamplingParams()
_SAMPLING = tuple(name for name in SamplingParams.__struct_fields__)
_REQUEST = {field.name: field.default for field in msgspec.structs.fields(GenerateRequest)} | {
    "template_options": {}
}
_OTHERS = tuple(name for name in _REQUEST if name in OPTIONAL_FIELDS)


def used_fields(request: GenerateRequest) -> set[str]:
    """The members of `OPTIONAL_FIELDS` that this request gives a value of its own."""
    used = {
        f"sampling.{name}"
        for name in _SAMPLING
        if getattr(request.sampling, name) != getattr(_DEFAULTS, name)
    }
    if isinstance(request.prompt, tuple):
        used.add("prompt_token_ids")
    for name in _OTHERS:
        if getattr(request, name) != _REQUEST[name]:
            used.add(name)
    return used & OPTIONAL_FIELDS


def check_fields(request: GenerateRequest, model: str, info: ModelInfo) -> None:
    """Raise `UnsupportedField`, naming the first field that the backend would not honour."""
    missing = sorted(used_fields(request) - info.capabilities.request_fields)
    if not info.capabilities.generate:
        raise UnsupportedField(f"Model {model!r} does not generate text.", field="model")
    if missing:
        also = f" (nor {', '.join(missing[1:])})" if missing[1:] else ""
        raise UnsupportedField(
            f"Model {model!r}, on backend {info.backend!r}, does not support {missing[0]}{also}.",
            field=missing[0],
            remedy="Leave it out, or use a model on a backend that supports it.",
        )
