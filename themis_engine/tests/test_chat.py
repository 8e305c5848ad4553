"""Chat templates: rendered in a sandbox, and refused with a reason."""

from __future__ import annotations

import pytest

from themis_core.errors import InvalidRequest, ModelFileInvalid
from themis_core.messages import ChatMessage, Tool, ToolCall
from themis_engine.chat import ChatTemplate

CHATML = """
{%- for message in messages %}
    <|im_start|>{{ message.role }}
    {{ message.content }}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

USER = (ChatMessage(role="user", content="Grüße & <b>"),)


def test_text_is_not_escaped() -> None:
    text = ChatTemplate(CHATML, {}).render(USER)
    assert "Grüße & <b>" in text
    assert text.endswith("<|im_start|>assistant\n")


def test_tools_and_calls_reach_the_template() -> None:
    source = (
        "{{ tools | tojson }}|{{ messages[0].tool_calls[0].function.arguments.city }}|{{ bos }}"
    )
    message = ChatMessage(
        role="assistant", tool_calls=(ToolCall(id="1", name="w", arguments='{"city": "Köln"}'),)
    )
    text = ChatTemplate(source, {"bos": "<s>"}).render([message], [Tool(name="w")])
    assert '"name": "w"' in text
    assert text.endswith("|Köln|<s>")


def test_options_are_variables() -> None:
    template = ChatTemplate("{{ enable_thinking }}{{ messages[0].content }}", {})
    assert template.render(USER, (), {"enable_thinking": False}) == "FalseGrüße & <b>"
    for name in ("messages", "tools", "add_generation_prompt"):
        with pytest.raises(InvalidRequest, match=name) as caught:
            template.render(USER, (), {name: []})
        assert caught.value.field == "template_options"


def test_options_that_the_template_does_not_have_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="Did you mean 'enable_thinking'"):
        ChatTemplate("{{ enable_thinking }}", {}).render(USER, (), {"enabled_thinking": 1})


@pytest.mark.parametrize(
    ("source", "effort", "prompt"),
    [
        ("{{ reasoning_effort }}</think>", "high", "high</think>"),
        ("{{ reasoning_effort }}</think>", "none", "none</think>"),
        ("{{ enable_thinking }}</think>", "none", "False</think>"),
        ("{{ thinking }}</think>", "none", "False</think>"),
        ("x", "none", "x"),
        ("x</think>", "none", None),
        ("{{ enable_thinking }}</think>", "high", None),
        ("x", "high", None),
    ],
)
def test_reasoning_effort(source: str, effort: str, prompt: str | None) -> None:
    template, options = ChatTemplate(source, {}), {"reasoning_effort": effort}
    if prompt is not None:
        assert template.render(USER, (), options) == prompt
    else:
        with pytest.raises(InvalidRequest, match="reasoning_effort"):
            template.render(USER, (), options)


def test_reasoning_and_names_reach_the_template() -> None:
    source = "{% set m = messages[0] %}{{ m.reasoning_content }}{{ m.thinking }}{{ m.name }}"
    message = ChatMessage(role="assistant", content="x", reasoning="why", name="Ann")
    assert ChatTemplate(source, {}).render([message]) == "whywhyAnn"
    assert ChatTemplate("{{ messages[0] | length }}", {}).render(USER) == "2"


@pytest.mark.parametrize("arguments", ["[1]", "x", '{"a": NaN}', "{" * 5000, '"{}"'])
def test_arguments_that_are_no_object_are_shown_as_they_are(arguments: str) -> None:
    source = "{{ messages[0].tool_calls[0].function.arguments if messages[0].tool_calls }}"
    message = ChatMessage(
        role="assistant", tool_calls=(ToolCall(id="1", name="w", arguments=arguments),)
    )
    assert ChatTemplate(source, {}).render([message]) == arguments


def test_a_template_may_refuse() -> None:
    template = ChatTemplate("{{ raise_exception('system only first') }}", {})
    with pytest.raises(InvalidRequest, match="system only first"):
        template.render(USER)


def test_a_broken_template_is_named_with_its_line() -> None:
    with pytest.raises(ModelFileInvalid, match="line 2"):
        ChatTemplate("\n{% if %}", {})


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
    ],
)
def test_the_sandbox_holds(attack: str) -> None:
    with pytest.raises(InvalidRequest):
        ChatTemplate(attack, {}).render(USER)
