"""Constrained output: what a text may be, compiled once, and walked token by token.

`docs/constraints.md` says what each kind of constraint may contain and what is refused.
"""

from __future__ import annotations

from themis_engine.constraint.compiler import ConstraintCompiler
from themis_engine.constraint.matcher import Grammar, Matcher

__all__ = ["ConstraintCompiler", "Grammar", "Matcher"]
