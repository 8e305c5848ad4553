"""Everything the model reads, written by this project: tables of facts, and generators."""

from .base import Conversation, Fact
from .mixture import Mixture, held_out, load_facts

__all__ = ["Conversation", "Fact", "Mixture", "held_out", "load_facts"]
