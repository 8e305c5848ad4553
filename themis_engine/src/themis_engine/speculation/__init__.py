"""Speculation: guessing the next tokens, so that one step of the model can confirm several."""

from themis_engine.speculation.draft import DraftModel
from themis_engine.speculation.lookup import PromptLookup
from themis_engine.speculation.speculation import Proposer, Speculation

__all__ = ["DraftModel", "PromptLookup", "Proposer", "Speculation"]
