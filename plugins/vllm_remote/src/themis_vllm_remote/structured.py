"""Constraints in vLLM's words: its own structured outputs, or one llguidance grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from llguidance import regex_to_lark

from themis_core.errors import UnsupportedField
from themis_core.messages import Constraint
from themis_engine.constraint import gbnf, gbnf_lark, json_schema, lark, regex

Kind = Literal["native", "guidance"]
_PATH = "constraint.value"
_FLAG = '--structured-outputs-config \'{"backend": "guidance"}\''


def structured_outputs(constraint: Constraint, kind: Kind, *, ours: bool = False) -> dict[str, Any]:
    """The value of `structured_outputs`. Raises `InvalidRequest` and `UnsupportedField`.

    `ours`: a Lark grammar of the engine's own, which may name special tokens.
    """
    if kind == "guidance":
        return {"grammar": _grammar(constraint, ours)}
    value = constraint.value
    match constraint.kind:
        case "json_schema":
            return {"json": value}
        case "regex":
            return {"regex": value}
        case "choice":
            return {"choice": list(value)}
        case "gbnf":
            return {"grammar": value}
    raise UnsupportedField(
        "vLLM's own structured outputs know no Lark grammars.",
        field="constraint" if not ours else "tool_choice",
        remedy=f'Start the server with {_FLAG} and set structured = "guidance".',
        plugin="vllm",
    )


def _grammar(constraint: Constraint, ours: bool) -> str:
    """One text in llguidance's Lark dialect, which vLLM's `grammar` takes."""
    value = constraint.value
    match constraint.kind:
        case "lark":
            source = lark.source(value, _PATH, tokens=ours)
        case "gbnf":
            source = gbnf_lark.convert(gbnf.parse(value, _PATH), _PATH)
        case "json_schema":
            wrapped: Mapping[str, Any] = json.loads(json_schema.source(value, _PATH))
            source = f"start: %json {json.dumps(wrapped['grammars'][0]['json_schema'])}"
        case "regex":
            source = _of_regex(regex.parse(value, search=False, field=_PATH))
        case "choice":
            node = regex.Alt(tuple(map(regex.literal, dict.fromkeys(value))))
            source = _of_regex(node)
    return source if source.startswith("%llguidance") else f"%llguidance {{}}\n{source}"


def _of_regex(node: regex.Node) -> str:
    return f"start: /{regex_to_lark(regex.to_rust(node), '')}/"
