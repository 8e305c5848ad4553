"""Reading what models write: answers, reasoning and calls, however it is cut into pieces."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from themis_core.messages import ChatMessage, Constraint, GenerateRequest, Tool
from themis_engine.tools import ChatFormat, OutputParser
from themis_engine.tools.scan import ObjectScanner, members

from .chat_styles import (
    CHATML,
    LLAMA,
    MISTRAL_IDS,
    MISTRAL_LIST,
    MISTRAL_NAMED,
    NO_TOOLS,
    THINKING,
    CharTokenizer,
)

TOOLS = (Tool(name="w"), Tool(name="get_time"))
THINK = "[THINK]", "[/THINK]"


def parser(
    source: str, tail: str = "", tools: tuple[Tool, ...] = TOOLS, **more: Any
) -> OutputParser:
    request = GenerateRequest(
        messages=(ChatMessage(role="user", content="?"),), tools=tools, **more
    )
    return ChatFormat.of(source, CharTokenizer(source)).parser(request, tail)


def read(reader: OutputParser, *pieces: str) -> dict[str, Any]:
    """Everything joined, the ids left out."""
    found = [*map(reader.push, pieces), reader.finish()]
    calls: dict[int, list[str]] = {}
    for delta in (delta for piece in found for delta in piece.tool_calls):
        if delta.name:
            assert delta.id
            assert delta.index == len(calls)
            calls[delta.index] = [delta.name, ""]
        else:
            assert not delta.id
        calls[delta.index][1] += delta.arguments
    return {
        "text": "".join(piece.text for piece in found),
        "reasoning": "".join(piece.reasoning for piece in found),
        "calls": list(calls.values()),
        "called": reader.called,
    }


def outcome(
    text: str = "", *calls: list[str], reasoning: str = "", called: bool | None = None
) -> dict[str, Any]:
    known = bool(calls) if called is None else called
    return {"text": text, "reasoning": reasoning, "calls": list(calls), "called": known}


W = ["w", '{"city": "K {\\" }"}']
T = ["get_time", "{}"]
TAGGED = '<tool_call>\n{"name": "w", "arguments": {"city": "K {\\" }"}}\n</tool_call>'
TAGGED_T = '<tool_call>{"name":"get_time","arguments":{}}</tool_call>'
ODD = '<tool_call> {"type": "function", "arguments": {"city": "K {\\" }"}, "name": "w"}</tool_call>'
IN_STRING = '<tool_call>{"name": "get_time", "arguments": "{}"}</tool_call>'
BARE = '{"name": "w", "parameters": {"city": "K {\\" }"}}'
BARE_T = '{"name": "get_time", "parameters": {}}'
ITEM = '{"name": "w", "arguments": {"city": "K {\\" }"}, "id": "abcdefgh1"}'
ITEM_T = '{"name": "get_time", "arguments": {}}'

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "text": (CHATML, " Hi <b> {x} \n", outcome(" Hi <b> {x} \n")),
    "nothing": (CHATML, "", outcome()),
    "call": (CHATML, TAGGED, outcome("", W)),
    "call without end tag": (CHATML, TAGGED.removesuffix("\n</tool_call>"), outcome("", W)),
    "calls": (CHATML, f"{TAGGED}\n{TAGGED_T}\n", outcome("", W, T)),
    "text around calls": (
        CHATML,
        f"Well.\n\n{TAGGED}\nAnd {TAGGED_T} so ",
        outcome("Well.\nAnd so ", W, T),
    ),
    "other order": (CHATML, ODD, outcome("", W)),
    "arguments in a string": (CHATML, IN_STRING, outcome("", T)),
    "no arguments": (CHATML, '<tool_call>{"name": "w"}</tool_call>', outcome("", ["w", "{}"])),
    "unknown tool": (CHATML, TAGGED.replace('"w"', '"x"'), outcome(TAGGED.replace('"w"', '"x"'))),
    "no JSON": (CHATML, "<tool_call>w(1)</tool_call>!", outcome("<tool_call>w(1)</tool_call>!")),
    "broken JSON": (CHATML, '<tool_call>{"name" "w"}x', outcome('<tool_call>{"name" "w"}x')),
    "list as arguments": (
        CHATML,
        '<tool_call>{"name": "w", "arguments": []}',
        outcome('<tool_call>{"name": "w", "arguments": []}'),
    ),
    "broken, then right": (CHATML, f"<tool_call>{TAGGED}", outcome("<tool_call>", W)),
    "only a tag": (CHATML, "a <tool_call>", outcome("a <tool_call>")),
    "half a tag": (CHATML, "a  <tool_", outcome("a  <tool_")),
    "half a name": (CHATML, '<tool_call>{"name": "w', outcome('<tool_call>{"name": "w')),
    "half the arguments": (
        CHATML,
        '<tool_call>{"name": "w", "arguments": {"ci',
        outcome("", ["w", '{"ci'], called=False),
    ),
    "arguments that go on": (
        CHATML,
        '<tool_call>{"name": "w", "arguments": {} x',
        outcome(" x", ["w", "{}"], called=False),
    ),
    "unknown form": (NO_TOOLS, TAGGED, outcome(TAGGED)),
    "bare": (LLAMA, BARE, outcome("", W)),
    "bare with tag": (LLAMA, f"<|python_tag|>{BARE}", outcome("", W)),
    "bare, several": (LLAMA, f"\n{BARE}; {BARE_T}\n", outcome("", W, T)),
    "bare, then text": (LLAMA, f"{BARE} ok {BARE}", outcome(f" ok {BARE}", W)),
    "bare, too late": (LLAMA, f"Hi {BARE}", outcome(f"Hi {BARE}")),
    "bare, no call": (LLAMA, ' {"a": 1} ', outcome(' {"a": 1} ')),
    "bare, code": (LLAMA, "<|python_tag|>w.call(1)", outcome("<|python_tag|>w.call(1)")),
    "list": (MISTRAL_LIST, f"[TOOL_CALLS] [{ITEM}, {ITEM_T}]", outcome("", W, T)),
    "list, text": (MISTRAL_LIST, f"Hm [TOOL_CALLS][{ITEM}] x", outcome("Hm x", W)),
    "list, no call": (MISTRAL_LIST, "[TOOL_CALLS] [1]", outcome("[TOOL_CALLS] [1]")),
    "list, none": (MISTRAL_LIST, "[TOOL_CALLS] x", outcome("[TOOL_CALLS] x")),
    "list, half right": (MISTRAL_LIST, f"[TOOL_CALLS][{ITEM_T}, 1]", outcome(", 1]", T)),
    "named": (
        MISTRAL_NAMED,
        '[TOOL_CALLS]w[ARGS]{"city": "K {\\" }"}[TOOL_CALLS]get_time{}',
        outcome("", W, T),
    ),
    "named with id": (
        MISTRAL_IDS,
        "a [TOOL_CALLS]get_time[CALL_ID]abcdefgh1[ARGS] {} b",
        outcome("a b", T),
    ),
    "named, no call": (MISTRAL_NAMED, "[TOOL_CALLS]a, b", outcome("[TOOL_CALLS]a, b")),
    "thought": (THINKING, "<think>\na\n</think>\n\nb", outcome("b", reasoning="a")),
    "empty thought": (THINKING, "<think>\n\n</think>\n\nb", outcome("b")),
    "thought and call": (
        THINKING,
        f"<think>{TAGGED}</think>{TAGGED}",
        outcome("", W, reasoning=TAGGED),
    ),
    "thought without end": (THINKING, "<think>a\n</thi", outcome(reasoning="a\n</thi")),
    "nested thought": (
        THINKING,
        "<think>a<think>b</think>c</think>d",
        outcome("c</think>d", reasoning="a<think>b"),
    ),
    "late thought": (THINKING, "a<think>b</think>", outcome("a<think>b</think>")),
    "half a start tag": (THINKING, "\n<thin", outcome("\n<thin")),
    "brackets": (MISTRAL_NAMED, "[THINK]a[/THINK]b", outcome("b", reasoning="a")),
}


@pytest.mark.parametrize("case", CASES)
def test_whole(case: str) -> None:
    source, text, expected = CASES[case]
    assert read(parser(source), text) == expected


@pytest.mark.parametrize("case", CASES)
def test_character_by_character(case: str) -> None:
    source, text, expected = CASES[case]
    assert read(parser(source), *text) == expected


@pytest.mark.parametrize("written", ["a\n</think>\n\nb", "<think>\na</think>b", "\n\na</think>b"])
@pytest.mark.parametrize("tail", ["<|im_start|>assistant\n<think>\n", "<think>"])
def test_a_thought_that_the_prompt_has_begun(written: str, tail: str) -> None:
    assert read(parser(THINKING, tail), *written) == outcome("b", reasoning="a")
    assert read(parser(THINKING, tail), written) == outcome("b", reasoning="a")


def test_a_thought_that_the_prompt_has_ended() -> None:
    tail = "assistant\n<think>\n\n</think>\n\n"
    assert read(parser(THINKING, tail), "a</think>b") == outcome("a</think>b")


def test_no_tools_no_calls() -> None:
    for more in ({"tools": ()}, {"tool_choice": "none"}):
        assert read(parser(CHATML, **more), TAGGED) == outcome(TAGGED)


def test_a_constraint_governs_text() -> None:
    constraint = Constraint(kind="json_schema", value={})
    reader = parser(THINKING, "<think>\n", constraint=constraint)
    assert read(reader, TAGGED) == outcome(TAGGED)


@pytest.mark.parametrize(
    ("source", "text", "rest"),
    [
        (CHATML, f"{TAGGED}\n{TAGGED_T}", "\n" + TAGGED_T),
        (CHATML, f"{TAGGED}\n", ""),
        (LLAMA, f"{BARE}; {BARE_T}", f"; {BARE_T}"),
        (MISTRAL_LIST, f"[TOOL_CALLS][{ITEM}, {ITEM_T}]", f", {ITEM_T}]"),
        (MISTRAL_NAMED, f"[TOOL_CALLS]w{W[1]}[TOOL_CALLS]get_time{{}}", "[TOOL_CALLS]get_time{}"),
    ],
)
def test_without_parallel_calls_the_rest_is_text(source: str, text: str, rest: str) -> None:
    for pieces in ([text], [*text]):
        assert read(parser(source, parallel_tool_calls=False), *pieces) == outcome(rest, W)


def test_arguments_come_as_they_are_written() -> None:
    reader = parser(CHATML)
    assert reader.push('<tool_call>{"name": "w", "arguments": ').tool_calls == ()
    pieces = [reader.push(text).tool_calls for text in ('{"a', '": [1,', " 2]", "}", "}")]
    assert [[delta.arguments for delta in piece] for piece in pieces] == [
        ["", '{"a'],
        ['": [1,'],
        [" 2]"],
        ["}"],
        [],
    ]
    assert reader.called


def test_text_is_held_back_only_where_a_marker_could_begin() -> None:
    reader = parser(CHATML)
    assert [reader.push(text).text for text in ("Hi", " ", "<b", "> <tool", "s>", "\n", "x")] == [
        "Hi",
        "",
        " <b",
        ">",
        " <tools>",
        "",
        "\nx",
    ]


@pytest.mark.parametrize(
    ("source", "text", "form"),
    [
        (CHATML, TAGGED, r"call_[0-9a-f]{24}"),
        (LLAMA, BARE, r"call_[0-9a-f]{24}"),
        (MISTRAL_LIST, f"[TOOL_CALLS][{ITEM}]", r"[a-zA-Z0-9]{9}"),
        (MISTRAL_NAMED, "[TOOL_CALLS]w{}", r"[a-zA-Z0-9]{9}"),
        (MISTRAL_IDS, "[TOOL_CALLS]w[CALL_ID]abcdefgh1[ARGS]{}", "abcdefgh1"),
    ],
)
def test_ids(source: str, text: str, form: str) -> None:
    ids = {parser(source).push(text).tool_calls[0].id for _ in range(8)}
    assert all(re.fullmatch(form, call_id) for call_id in ids)
    assert len(ids) == (1 if "CALL_ID" in source else 8)


SNIPPETS = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "<think>",
            "</think>",
            "[TOOL_CALLS]",
            "[ARGS]",
            "[THINK]",
        ),
        *("[/THINK]", "[CALL_ID]", "<|python_tag|>", "[", "]", "{", "}", '"', "\\", ",", ";", ":"),
        *(TAGGED, TAGGED_T, BARE, ITEM, W[1], '"name"', '"arguments"', "w", " ", "\n", "ab", "<t"),
        '{"name": "w", "arguments": ',
    ]
)
WRITTEN = st.lists(SNIPPETS, max_size=12).map("".join)
SOURCES = st.sampled_from([CHATML, LLAMA, MISTRAL_LIST, MISTRAL_NAMED, MISTRAL_IDS, THINKING])


@given(SOURCES, WRITTEN, st.data(), st.booleans(), st.booleans())
def test_cuts_change_nothing_and_nothing_is_lost(
    source: str, text: str, data: st.DataObject, opened: bool, parallel: bool
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    tail = "<think>" if opened else ""
    whole = read(parser(source, tail, parallel_tool_calls=parallel), text)
    assert read(parser(source, tail, parallel_tool_calls=parallel), *pieces) == whole
    if not whole["calls"]:
        # Only tags and space at the borders are gone.
        kept = whole["reasoning"] + whole["text"]
        assert _bare(kept) == _bare(text)
    for name, arguments in whole["calls"]:
        assert name in ("w", "get_time")
        assert arguments in text or arguments == "{}"


def _bare(text: str) -> str:
    for tag in ("<think>", "</think>", "[THINK]", "[/THINK]"):
        text = text.replace(tag, "")
    return "".join(text.split())


@given(st.text())
def test_text_without_markers_is_untouched(text: str) -> None:
    for source in (CHATML, LLAMA, MISTRAL_LIST, MISTRAL_NAMED, THINKING, NO_TOOLS):
        assert read(parser(source), *text)["text"] == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.booleans(), st.sampled_from([None, 1]))
def test_any_arguments_arrive_exactly(value: dict[str, Any], ascii_only: bool, indent: int) -> None:
    arguments = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    text = f'<tool_call>\n{{"name": "w", "arguments": {arguments}}}\n</tool_call>'
    for pieces in ([text], [*text]):
        assert read(parser(CHATML), *pieces) == outcome("", ["w", arguments])
    assert ObjectScanner().end(arguments + "}") == len(arguments)
    assert {key: json.loads(v) for key, v in members(arguments).items()} == value
