"""Which form of calls a template has, and grammars that force it; run by llguidance itself."""

from __future__ import annotations

from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

import themis_tiny_model
from themis_core.errors import InvalidRequest, ModelFileInvalid, UnsupportedField
from themis_core.messages import ChatMessage, Constraint, GenerateRequest, NamedTool, Tool
from themis_engine.constraint import ConstraintCompiler
from themis_engine.hf_tokenizer import HfTokenizer
from themis_engine.tools import ChatFormat

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

BRACKETS = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]", "</s>")
TOOLS = (
    Tool(
        name="w",
        parameters={
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    ),
    Tool(name="t"),
)
A = '<tool_call>\n{"name": "w", "arguments": {"city": "K"}}\n</tool_call>'
B = '<tool_call>\n{"name": "t", "arguments": {}}\n</tool_call>'
WRONG = A.replace('"K"', "1")
BARE = '{"name": "w", "parameters": {"city": "K"}}'
LIST = '[TOOL_CALLS][{"name": "w", "arguments": {"city": "K"}}'
NAMED = '[TOOL_CALLS]w[ARGS]{"city": "K"}'
IDS = '[TOOL_CALLS]w[CALL_ID]abcdefgh1[ARGS]{"city": "K"}'
REQUIRED: dict[str, Any] = {"tool_choice": "required"}
ONE: dict[str, Any] = {"tool_choice": "required", "parallel_tool_calls": False}
ONLY_T: dict[str, Any] = {"tool_choice": NamedTool(name="t")}
AUTO_ONE: dict[str, Any] = {"parallel_tool_calls": False}
DEEP: dict[str, Any] = {"template_options": {"deep": True}}

# Template, request, outputs that the grammar takes whole, and outputs that it does not.
CASES: dict[str, tuple[str, dict[str, Any], list[str], list[str]]] = {
    "required": (
        CHATML,
        REQUIRED,
        [A, B, f"{A}\n{B}"],
        ["", "hi", f"x{A}", WRONG, A[:-1], f"{A}x"],
    ),
    "one": (CHATML, ONE, [A, B], ["", f"{A}\n{B}", f"{A}{B}"]),
    "named tool": (CHATML, ONLY_T, [B, f"{B}\n{B}"], [A, ""]),
    "auto": (
        CHATML,
        {},
        ["", "hi <b> <tool", A, f"Hm.\n{A}\n{B} so", "<think>a</think>"],
        [WRONG, f"x{WRONG}", "<tool_call>", A.replace('"w"', '"x"'), f"{A}{A[:-1]}{B}"],
    ),
    "auto, one": (CHATML, AUTO_ONE, ["hi", f"Hm. {A}", f"{A}\n"], [f"{A}\n{B}", f"{A}x", WRONG]),
    "thinking": (
        THINKING,
        REQUIRED,
        [A, f"<think>\n{WRONG}\n</think>\n\n{A}", f"<think></think>{A}\n{B}"],
        ["", "<think>", f"<think>{A}", f"<think>a</think>hi{A}", f"a</think>{A}"],
    ),
    "thinking, begun": (
        THINKING,
        REQUIRED | DEEP,
        [f"a</think>\n\n{A}", f"{WRONG}\n</think>{B}"],
        ["", A, "a</think>", f"a</think>hi{A}"],
    ),
    "thinking, auto": (
        THINKING,
        {},
        ["", "hi", A, f"<think>{WRONG}</think>hi {A} x", "<thin", f"x <think> {A}"],
        [WRONG, f"<think></think>{WRONG}", f"<think>{A}", f"x{WRONG}"],
    ),
    "thinking, auto, begun": (
        THINKING,
        DEEP,
        ["</think>", f"{WRONG}</think>hi {A} x"],
        ["", "hi", f"</think>{WRONG}"],
    ),
    "bare": (LLAMA, REQUIRED, [BARE], ["", "hi", f"{BARE}; {BARE}", BARE.replace('"K"', "1")]),
    "list": (
        MISTRAL_LIST,
        REQUIRED,
        [f"{LIST}]", LIST + ', {"name": "t", "arguments": {"a": 1}}]'],
        ["", LIST, f"x{LIST}]", "[TOOL_CALLS][]", LIST.replace("w", "x") + "]"],
    ),
    "list, one": (MISTRAL_LIST, ONE, [f"{LIST}]"], [LIST + ', {"name": "t", "arguments": {}}]']),
    "list, auto": (
        MISTRAL_LIST,
        {},
        ["", "hi [", f"Hm. {LIST}]"],
        [LIST, LIST.replace('"K"', "1")],
    ),
    "named": (MISTRAL_NAMED, REQUIRED, [NAMED, NAMED * 2], ["", f"x{NAMED}", NAMED + "x"]),
    "named, one": (MISTRAL_NAMED, ONE, [NAMED], [NAMED * 2]),
    "named, auto": (
        MISTRAL_NAMED,
        {},
        ["", "hi", f"Hm. {NAMED}{NAMED}", f"[THINK]a[/THINK]{NAMED}"],
        [NAMED.replace('"K"', "1"), NAMED.replace("w", "x"), "[THINK]a"],
    ),
    "named with ids": (MISTRAL_IDS, REQUIRED, [IDS], [NAMED, IDS.replace("h1", "h")]),
}


def request(**more: Any) -> GenerateRequest:
    return GenerateRequest(
        messages=(ChatMessage(role="user", content="?"),), **({"tools": TOOLS} | more)
    )


def grammar(source: str, more: dict[str, Any]) -> tuple[CharTokenizer, Constraint]:
    tokenizer = CharTokenizer(source, BRACKETS)
    constraint = ChatFormat.of(source, tokenizer).constraint(request(**more))
    assert constraint is not None
    assert constraint.kind == "lark"
    return tokenizer, constraint


class _Words:
    """`CharTokenizer` as llguidance wants it."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    eos_token_id = 256
    special_token_ids = (256,)

    def __init__(self, tokenizer: CharTokenizer) -> None:
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


@pytest.mark.parametrize("case", CASES)
def test_grammars_force_calls(case: str) -> None:
    source, more, right, wrong = CASES[case]
    tokenizer, constraint = grammar(source, more)
    words: Any = _Words(tokenizer)
    walk = LLMatcher(LLTokenizer(words, eos_token=[256]), constraint.value, log_level=0)
    assert not walk.is_error(), walk.get_error()
    assert not walk.get_grammar_warnings()
    for text in [*right, *wrong]:
        ids = tokenizer.encode(text, parse_special=True)
        here = walk.deep_copy()
        whole = here.try_consume_tokens(ids) == len(ids) and here.is_accepting()
        assert whole == (text in right), text


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if "[" not in case[2][-1]])
def test_the_engine_s_compiler_takes_them(case: str) -> None:
    source, more, right, wrong = CASES[case]
    tokenizer, constraint = grammar(source, more)
    compiled = ConstraintCompiler(tokenizer, tokenizer.vocab_size).compile(constraint)
    for text in [*right, *wrong]:
        assert (compiled.check(text) is None) == (text in right), text


def test_names_and_schemas_are_escaped() -> None:
    tool = Tool(name='a"b\\ü', parameters={"properties": {'x"%</y>': {"const": "\n"}}})
    tokenizer, constraint = grammar(CHATML, REQUIRED | {"tools": (tool,)})
    compiled = ConstraintCompiler(tokenizer, tokenizer.vocab_size).compile(constraint)
    name = '"a\\"b\\\\ü"'
    call = f'<tool_call>\n{{"name": {name}, "arguments": {{"x\\"%</y>": "\\n"}}}}\n</tool_call>'
    assert compiled.check(call) is None
    assert compiled.check(call.replace("\\n", "n")) is not None


def test_what_no_grammar_can_express() -> None:
    tool = Tool(name="w", parameters={"not": {"required": ["x"]}})
    tokenizer, free = grammar(CHATML, {"tools": (tool,)})
    compiler = ConstraintCompiler(tokenizer, tokenizer.vocab_size)
    assert compiler.compile(free).check(A) is None
    with pytest.raises(InvalidRequest, match="not"):
        compiler.compile(grammar(CHATML, {"tools": (tool,)} | REQUIRED)[1])


@pytest.mark.parametrize("more", [{}, REQUIRED])
def test_arguments_are_an_object(more: dict[str, Any]) -> None:
    either = Tool(name="w", parameters={"type": ["null", "object"]})
    tokenizer, constraint = grammar(CHATML, more | {"tools": (either,)})
    compiled = ConstraintCompiler(tokenizer, tokenizer.vocab_size).compile(constraint)
    assert compiled.check(A) is None
    assert compiled.check(A.replace('{"city": "K"}', "null")) is not None
    with pytest.raises(InvalidRequest, match="not an object") as caught:
        grammar(CHATML, more | {"tools": (Tool(name="w", parameters={"type": "string"}),)})
    assert caught.value.field == "tools"


def test_the_tail_of_the_prompt_can_be_given() -> None:
    chat = ChatFormat.of(THINKING, CharTokenizer(THINKING))
    for deep, tail in ((False, "assistant\n"), (True, "assistant\n<think>\n")):
        given = request(template_options={"deep": deep}, tool_choice="required")
        assert chat.constraint(given) == chat.constraint(given, tail)
    assert chat.constraint(given) != chat.constraint(given, "")


def test_nothing_to_force() -> None:
    chat = ChatFormat.of(CHATML, CharTokenizer(CHATML))
    assert chat.constraint(request(tools=())) is None
    assert chat.constraint(request(tool_choice="none")) is None
    assert chat.constraint(request(constraint=Constraint(kind="regex", value="a"))) is None
    assert ChatFormat.of(LLAMA, CharTokenizer(LLAMA)).constraint(request()) is None


@pytest.mark.parametrize("source", [NO_TOOLS, CHATML.replace("{{ t | tojson }}", "x"), None])
def test_unknown_forms_have_no_tools(source: str | None) -> None:
    chat = ChatFormat.of(source, CharTokenizer(source))
    assert not chat.tools
    assert not chat.reasoning
    for choice in ("auto", "required"):
        with pytest.raises(UnsupportedField) as caught:
            chat.constraint(request(tool_choice=choice))
        assert caught.value.field == "tools"
    assert chat.constraint(request(tools=())) is None
    assert chat.parser(request(tools=()), "").push(A).text == A


@pytest.mark.parametrize(
    ("source", "tools", "reasoning", "markers"),
    [
        (CHATML, True, False, set()),
        (THINKING, True, True, set()),
        (LLAMA, True, False, set()),
        (MISTRAL_LIST, True, False, {"[TOOL_CALLS]"}),
        (MISTRAL_NAMED, True, True, set(BRACKETS) - {"</s>"}),
        (NO_TOOLS, False, False, set()),
    ],
)
def test_what_a_format_has(source: str, tools: bool, reasoning: bool, markers: set[str]) -> None:
    tokenizer = CharTokenizer(source, BRACKETS)
    chat = ChatFormat.of(source, tokenizer)
    assert (chat.tools, chat.reasoning) == (tools, reasoning)
    given = request() if tools else request(tools=())
    expected = {tokenizer.special_tokens[text]: text for text in markers}
    assert chat.parser(given, "").markers == expected
    thinking = {i: text for i, text in expected.items() if "THINK" in text}
    assert chat.parser(request(tools=()), "").markers == thinking


def test_a_broken_template_is_refused() -> None:
    with pytest.raises(ModelFileInvalid):
        ChatFormat.of("{% if %}", CharTokenizer())


def test_the_bundled_model() -> None:
    tokenizer = HfTokenizer(themis_tiny_model.path("hf"))
    chat = ChatFormat.of(tokenizer.chat_template, tokenizer)
    assert chat.tools
    assert not chat.reasoning
    constraint = chat.constraint(request(tool_choice="required"))
    assert constraint is not None
    compiled = ConstraintCompiler(tokenizer, 1920).compile(constraint)
    assert compiled.check(A) is None
    matcher = compiled.matcher()
    for token in tokenizer.encode(A, parse_special=False):
        matcher.advance(token)
    assert matcher.may_end
