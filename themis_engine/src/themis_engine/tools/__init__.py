"""Tool calls and reasoning: which form a model writes them in, forcing it, and reading it."""

from __future__ import annotations

from themis_engine.tools.chat_format import ChatFormat
from themis_engine.tools.parser import OutputParser, Piece

__all__ = ["ChatFormat", "OutputParser", "Piece"]
