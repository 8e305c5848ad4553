"""Fields that OpenAI knows and this server does not honour: refused, or reported as ignored.

Ignored are only fields that cannot change the answer. Everything else that is not honoured is
refused, unless it has a value that asks for nothing.
"""

from __future__ import annotations

from typing import Any

from themis_core.errors import UnsupportedField
from themis_openai_server.body import GenerationBody, MessageBody, Strict

# Field → the values that ask for nothing (null always does).
REFUSED: dict[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none",),
    "modalities": (["text"],),
    "audio": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    "moderation": (),
    "echo": (False,),
    "suffix": ("",),
    "dimensions": (),
}
_REMEDIES = {
    "functions": "Use tools.",
    "function_call": "Use tool_choice.",
    "dimensions": "Shorten the vectors in the client.",
}
IGNORED = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prompt_cache_options",
    "prediction",
)
_REFUSED_IN_MESSAGES = ("refusal", "annotations", "audio", "function_call")


def refused(field: str, why: str, remedy: str = "Leave it out.") -> UnsupportedField:
    """The error for a field that cannot be honoured."""
    return UnsupportedField(f"{field} is not supported: {why}", field=field, remedy=remedy)


def check_refused(body: Strict) -> None:
    """Raise `UnsupportedField` for the first field that asks for what there is not."""
    for name, harmless in REFUSED.items():
        value = getattr(body, name, None)
        # Compared by type too, because True == 1.
        if value is not None and not any(value == h and type(value) is type(h) for h in harmless):
            raise refused(
                name,
                "this server cannot honour it.",
                _REMEDIES.get(name, "Leave it out."),
            )


def check_message(message: MessageBody, where: str) -> None:
    """The same for one turn of a chat."""
    for name in _REFUSED_IN_MESSAGES:
        if getattr(message, name):
            raise refused(f"{where}.{name}", "messages carry text and tool calls only.")


def ignored_fields(body: Strict) -> tuple[str, ...]:
    """The harmless fields that were given and have no effect."""
    found = [name for name in IGNORED if getattr(body, name, None) is not None]
    options = body.stream_options if isinstance(body, GenerationBody) else None
    if options is not None and options.include_obfuscation is not None:
        found.append("stream_options.include_obfuscation")
    return tuple(found)
