"""What travels between the rooms: requests, events and facts about models, as immutable data."""

from themis_core.messages.chat import ChatMessage, NamedTool, Role, Tool, ToolCall, ToolChoice
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
    ToolCallDelta,
    Usage,
)
from themis_core.messages.model import (
    OPTIONAL_FIELDS,
    BackendStats,
    Capabilities,
    Histogram,
    ModelInfo,
)
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
    "Histogram",
    "ModelInfo",
    "NamedTool",
    "Role",
    "SamplingParams",
    "Started",
    "TokenLogprob",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "Usage",
    "new_request_id",
]
