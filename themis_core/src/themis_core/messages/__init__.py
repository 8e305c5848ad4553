"""What travels between the rooms: requests, events and facts about models, as immutable data."""

from themis_core.messages.chat import ChatMessage, Role, Tool, ToolCall
from themis_core.messages.events import (
    Choice,
    Completion,
    Delta,
    Done,
    EmbedResponse,
    Finished,
    FinishReason,
    GenerateEvent,
    Started,
    TokenLogprob,
    Usage,
)
from themis_core.messages.model import OPTIONAL_FIELDS, BackendStats, Capabilities, ModelInfo
from themis_core.messages.request import (
    AdapterWeight,
    Constraint,
    EmbedRequest,
    GenerateRequest,
    SamplingParams,
    new_request_id,
)

__all__ = [
    "OPTIONAL_FIELDS",
    "AdapterWeight",
    "BackendStats",
    "Capabilities",
    "ChatMessage",
    "Choice",
    "Completion",
    "Constraint",
    "Delta",
    "Done",
    "EmbedRequest",
    "EmbedResponse",
    "FinishReason",
    "Finished",
    "GenerateEvent",
    "GenerateRequest",
    "ModelInfo",
    "Role",
    "SamplingParams",
    "Started",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "Usage",
    "new_request_id",
]
