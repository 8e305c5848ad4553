"""Grammars in llguidance's Lark dialect that make a model write tool calls, and right ones.

Sources: llguidance's `docs/syntax.md`; special tokens are written `<[id]>`, schemas `%json {…}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from themis_core.errors import InvalidRequest
from themis_core.messages import Tool
from themis_engine.constraint import json_schema
from themis_engine.tools.style import CALL_ID, Style, json_name

_ANY = r"(.|\n)*"
_GAP = r"/[\n ]?/"


class CallGrammar:
    """Writes the grammars of one model. `specials` are the texts of its special tokens."""

    def __init__(
        self,
        style: Style,
        thinking: tuple[str, str] | None,
        specials: Mapping[str, int],
    ) -> None:
        self._style = style
        self._thinking = thinking
        self._specials = specials

    def forced(self, tools: Sequence[Tool], *, parallel: bool, opened: bool) -> str:
        """Calls and nothing else, after reasoning if the model reasons.

        The schemas are those of the tools, whatever becomes of them in the compiler.

        With `opened`, the prompt has begun the reasoning, and it must end; otherwise it may be
        left out.
        """
        style = self._style
        calls = self._calls(tools, parallel=parallel)
        rules = [f"calls: {self._text(style.first)} {calls} {self._text(style.last)}"]
        start = "calls"
        if self._thinking is not None:
            begin, end = map(self._text, self._thinking)
            thought = r"thinking /\n{0,2}/ calls"
            start = thought if opened else f"{begin} {thought} | calls"
            rules += self._until("thinking", self._thinking[1], end)
        return self._grammar(start, rules, tools, loosely=False)

    def free(self, tools: Sequence[Tool], *, parallel: bool, opened: bool) -> str | None:
        """Any text, but in it, behind a call's marker, a right call. None for bare calls.

        Where a schema has what no grammar can express, the arguments are any object.
        """
        style = self._style
        marker = style.marker
        if not marker:
            return None
        special = marker in self._specials
        open_marker = self._text(marker)
        rules = [f"rest: TEXT | {'TEXT ' + open_marker if special else 'until_call'} called"]
        rules.append("TEXT: /" + _ANY + "/")
        rules += [] if special else [f"until_call[lazy]: /{_ANY}{_escaped(marker)}/"]
        first = style.first or style.begin
        inside = self._text(first.removeprefix(marker))
        if style.kind == "list":
            called = f"{inside} {self._calls(tools, parallel=parallel)} {self._text(style.last)}"
            called += f" {_GAP}"
        else:
            called = f"call_rest {'rest' if parallel else _GAP}"
            options = " | ".join(f"{inside} {self._call(i, tools[i])}" for i in range(len(tools)))
            rules.append(f"call_rest: {options}")
        rules.append(f"called: {called}")
        start = "rest"
        if self._thinking is not None:
            begin, end = self._thinking
            if opened:
                start = "thinking rest"
                rules += self._until("thinking", end, self._text(end))
            elif begin in self._specials or special:
                start = f"rest | {self._text(begin)} thinking rest"
                rules += self._until("thinking", end, self._text(end))
            else:
                # What begins with the tag is reasoning and may hold markers; nothing else is.
                tag = rf"[\n ]*{_escaped(begin)}"
                start = "thought rest | first called | PLAIN"
                rules += [
                    f"thought[lazy]: /{tag}{_ANY}{_escaped(end)}/",
                    "first[lazy]: FIRST",
                    f"FIRST: /{_ANY}{_escaped(marker)}/ & ~/{tag}{_ANY}/",
                    f"PLAIN: /{_ANY}/ & ~/{tag}{_ANY}/",
                ]
        return self._grammar(start, rules, tools, loosely=True)

    def _calls(self, tools: Sequence[Tool], *, parallel: bool) -> str:
        style = self._style
        between = style.between if parallel else None
        more = "" if between is None else f" ({self._text(between)} call)*"
        return f"call{more}"

    def _grammar(
        self, start: str, rules: list[str], tools: Sequence[Tool], *, loosely: bool
    ) -> str:
        begin = self._text(self._style.begin)
        call = " | ".join(f"{begin} {self._call(i, tool)}" for i, tool in enumerate(tools))
        if any(re.search(r"\bcall\b", rule) for rule in rules):
            rules = [*rules, f"call: {call}"]
        schemas = [
            f"arguments_{i}: %json {_schema(tool, loosely=loosely)}" for i, tool in enumerate(tools)
        ]
        return "\n".join(["%llguidance {}", f"start: {start}", *rules, *schemas, ""])

    def _call(self, index: int, tool: Tool) -> str:
        """A call behind its beginning."""
        style = self._style
        name = tool.name if style.kind == "named" else json_name(tool.name)
        given_id = f"{self._text(CALL_ID)} /[a-zA-Z0-9]{{9}}/ " if style.ids else ""
        parts = (
            f"{self._text(name)} {given_id}{self._text(style.middle)}"
            if given_id
            else self._text(name + style.middle)
        )
        return f"{parts} arguments_{index} {self._text(style.end)}".rstrip()

    def _until(self, rule: str, end: str, written: str) -> list[str]:
        if end in self._specials:
            return [f"{rule}: /{_ANY}/ {written}"]
        return [f"{rule}[lazy]: /{_ANY}{_escaped(end)}/"]

    def _text(self, text: str) -> str:
        """A text, with its special tokens as tokens."""
        if not text:
            return ""
        names = sorted(filter(None, self._specials), key=len, reverse=True)
        pattern = "(" + "|".join(map(re.escape, names)) + ")" if names else "((?!))"
        parts = [part for part in re.split(pattern, text) if part]
        return " ".join(
            f"<[{self._specials[part]}]>"
            if part in self._specials
            else json.dumps(part, ensure_ascii=False)
            for part in parts
        )


def _schema(tool: Tool, *, loosely: bool) -> str:
    """Arguments are an object, whatever the schema leaves open."""
    allowed = tool.parameters.get("type", "object")
    if "object" not in (allowed if isinstance(allowed, list) else [allowed]):
        raise InvalidRequest(
            f"The parameters of tool {tool.name!r} are of type {allowed!r}, not an object.",
            field="tools",
        )
    schema = tool.parameters | {"type": "object"}
    if loosely:
        try:
            json_schema.rewrite(schema, "tools")
        except InvalidRequest:
            schema = {"type": "object"}
    return json.dumps(schema)


def _escaped(text: str) -> str:
    return re.sub(r"([^\w\s<>])", r"\\\1", text)
