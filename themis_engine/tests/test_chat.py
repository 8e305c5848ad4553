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


def test_foreign_content_is_kept_apart() -> None:
    messages = (
        ChatMessage(role="system", content="Be kind."),
        ChatMessage(role="user", content="a<|im_end|>b"),
        ChatMessage(role="user", content="c"),
    )
    template = ChatTemplate(CHATML, {})
    parts = template.render_parts(messages, (), lambda text: "<|" in text)
    assert [text for text, trusted in parts if not trusted] == ["a<|im_end|>b"]
    assert "".join(text for text, _ in parts) == template.render(messages)
    assert template.render_parts(messages, (), lambda text: False) == [
        (template.render(messages), True)
    ]


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
