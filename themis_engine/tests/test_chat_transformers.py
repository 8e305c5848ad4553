"""The same prompts as `transformers`, character by character.

`CHAT_TEMPLATES` names a folder of `*.jinja` files, which are then compared as well: the
source distribution of llama-cpp-python has 70 in `vendor/llama.cpp/models/templates`.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest

from themis_core.errors import InvalidRequest
from themis_core.messages import ChatMessage, Tool, ToolCall
from themis_engine.chat import ChatTemplate

theirs = pytest.importorskip(
    "transformers.utils.chat_template_utils", reason="transformers is not installed"
)

TOKENS = {"bos_token": "<BOS>", "eos_token": "<EOS>"}
SPECIALS = ("<|im_end|>", "<|im_start|>", "<|eot_id|>", "[INST]", "<BOS>", "<EOS>", "</s>")
ID, OTHER = "abcdefgh1", "abcdefgh2"
WEATHER = Tool(
    name="get_weather",
    description="The weather <now>, in a \"city\" & 'village' [all]",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Köln, 東京"},
            "days": {"type": "integer", "enum": [1, 2], "description": "how many"},
        },
        "required": ["city"],
    },
)
TIME = Tool(
    name="get_time", description="The time", parameters={"type": "object", "properties": {}}
)


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def assistant(text: str = "", *calls: ToolCall, reasoning: str = "") -> ChatMessage:
    return ChatMessage(role="assistant", content=text, tool_calls=calls, reasoning=reasoning)


def tool(text: str, call: str = ID) -> ChatMessage:
    return ChatMessage(role="tool", content=text, tool_call_id=call, name="get_weather")


CALL = ToolCall(id=ID, name="get_weather", arguments='{"city": "Köln", "days": 1}')
SECOND = ToolCall(id=OTHER, name="get_time", arguments="{}")
SYSTEM = ChatMessage(role="system", content="  Be kind & <b>brief</b>.\n")
HELLO = user("Hello, [wörld] <tag> | {x} 東京 🎉 /think")

CASES: dict[str, tuple[list[ChatMessage], tuple[Tool, ...], dict[str, Any]]] = {
    "plain": ([HELLO], (), {}),
    "system": ([SYSTEM, HELLO], (), {}),
    "turns": ([SYSTEM, HELLO, assistant(" Hi. "), user("And?\n")], (), {}),
    "thought inside": ([HELLO, assistant("<think>\nhm\n</think>\n\nHi."), user("And?")], (), {}),
    "reasoning": ([HELLO, assistant("Hi.", reasoning="I think\nso."), user("And?")], (), {}),
    "tools": ([SYSTEM, HELLO], (WEATHER, TIME), {}),
    "call": ([HELLO, assistant("", CALL), tool('{"t": 21}')], (WEATHER,), {}),
    "call with text": ([HELLO, assistant("Well.", CALL), tool("21 <b>")], (WEATHER,), {}),
    "calls": (
        [HELLO, assistant("", CALL, SECOND), tool("1"), tool("2", OTHER), assistant("x"), HELLO],
        (WEATHER, TIME),
        {},
    ),
    "reasoned call": (
        [HELLO, assistant("", CALL, reasoning="Look."), tool("1"), assistant("x"), HELLO],
        (WEATHER,),
        {},
    ),
    "no thinking": ([SYSTEM, HELLO], (WEATHER,), {"enable_thinking": False}),
    "thinking": ([SYSTEM, HELLO], (), {"enable_thinking": True, "thinking": True}),
    "effort": ([HELLO], (), {"reasoning_effort": "low", "date_string": "1 Jan 2020"}),
}


def expected(
    source: str,
    messages: list[ChatMessage],
    tools: tuple[Tool, ...],
    options: dict[str, Any],
    none: bool,
) -> str | None:
    """What transformers makes of it; None if the template refuses."""
    plain = []
    for m in messages:
        turn: dict[str, Any] = {"role": m.role, "content": m.content}
        if m.name is not None:
            turn["name"] = m.name
        if m.tool_call_id is not None:
            turn["tool_call_id"] = m.tool_call_id
        if m.tool_calls:
            turn["content"] = m.content or (None if none else "")
            turn["tool_calls"] = [
                {
                    "id": c.id,
                    "type": "function",
                    "function": {"name": c.name, "arguments": theirs.json.loads(c.arguments)},
                }
                for c in m.tool_calls
            ]
        if m.reasoning:
            turn["reasoning_content"] = m.reasoning
        plain.append(turn)
    functions = [
        {
            "type": "function",
            "function": {
                "name": t.name,
                "description": t.description,
                "parameters": t.parameters,
            },
        }
        for t in tools
    ]
    # As `apply_chat_template` calls it.
    try:
        texts, _ = theirs.render_jinja_template(
            [plain],
            tools=functions or None,
            chat_template=source,
            add_generation_prompt=True,
            **{**TOKENS, **options},
        )
    except Exception:  # noqa: BLE001 - whatever a template fails with is a refusal.
        return None
    return str(texts[0])


@functools.lru_cache(maxsize=1)
def compiled(source: str) -> ChatTemplate:
    return ChatTemplate(source, TOKENS, SPECIALS)


def compare(source: str, name: str) -> bool:
    """Whether the template took the case. Fails where the two do not agree."""
    messages, tools, given = CASES[name]
    template = compiled(source)
    # Options that a template does not look at are refused, where transformers ignores them.
    options = {name: value for name, value in given.items() if name in template.variables}
    # An empty content is null for some templates; which, `ChatTemplate` finds out.
    both = [expected(source, messages, tools, options, none) for none in (True, False)]
    if both == [None, None]:
        with pytest.raises(InvalidRequest):
            template.render(messages, tools, options)
        return False
    ours = template.render(messages, tools, options)
    assert ours in both
    parts = template.render_parts(messages, tools, options)
    assert parts == [(ours, True)]
    return True


SOURCES = {
    "tojson": (
        "{{ messages | tojson }}|{{ tools | tojson(indent=2) }}|"
        "{{ tools | tojson(separators=(',', ':'), sort_keys=true) }}|"
        "{{ messages[0].content | tojson(ensure_ascii=true) }}"
    ),
    "loop controls": (
        "{% for m in messages %}{% if loop.index0 == 1 %}{% continue %}{% endif %}{{ m.role }}"
        "{% if loop.index0 == 2 %}{% break %}{% endif %}{% endfor %}"
    ),
    "generation": (
        "{% set x = 1 %}{% for m in messages %}{% generation %}\n  {{ m.content }}{% set x = 2 %}"
        "{{ x }}\n{% endgeneration %}{{ x }}{% endfor %}{{ bos_token }}"
    ),
    "names": (
        "{{ documents is none }}{{ documents is defined }}{{ tools is none }}{{ eos_token }}"
        "{{ pad_token is defined }}{{ enable_thinking is defined }}{{ date_string }}"
        "{% set ns = namespace(self=1, a=2) %}{% set ns.b = 3 %}{{ ns.self + ns.a + ns.b }}"
        "{{ dict(a=1) | tojson }}{{ dict.fromkeys('ab', 1) | tojson }}"
    ),
    "date": "{{ strftime_now('%Y-%m-%d') }}{{ strftime_now(format='%Y') }}",
    "whitespace": "  {% if true %}  \n  a\n  {%- endif %}\n {# x #}\n\n{{ messages[0].content }}\n",
    "text": (
        "{% for m in messages %}{{ m.content | trim | upper | length if m.content else 'x' }}"
        "{{ m.get('reasoning_content', '-') }}{{ m.get('thinking') }}"
        "{{ m['content'].split('</think>')[-1].lstrip('\\n')[:5] if m.content }}"
        "{{ m | items | list | length }}{% endfor %}"
    ),
    "null": "{% for m in messages %}{{ m.content is none }}{{ m.content }}{% endfor %}",
    "refuses": "{{ raise_exception('no') }}",
    "private namespace": "{% set ns = namespace(_a=1) %}",
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("source", SOURCES)
def test_small_templates(source: str, case: str) -> None:
    took = compare(SOURCES[source], case)
    assert took == (source not in ("refuses", "private namespace"))


def test_templates_of_models() -> None:
    folder = os.environ.get("CHAT_TEMPLATES")
    if not folder:
        pytest.skip("CHAT_TEMPLATES names no folder of templates")
    files = sorted(Path(folder).glob("*.jinja"))
    assert files, f"no *.jinja in {folder}"
    taken = 0
    for file in files:
        source = file.read_text(encoding="utf-8")
        for case in CASES:
            try:
                taken += compare(source, case)
            except (AssertionError, InvalidRequest) as error:
                raise AssertionError(f"{file.name}, {case}: {error}") from error
    assert taken > len(files) * len(CASES) // 2
