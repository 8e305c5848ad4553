"""Chat templates: messages to the prompt text that the model was trained on."""

from __future__ import annotations

from themis_engine.chat.template import ChatTemplate

__all__ = ["ChatTemplate"]
