"""The chat template: its turns, its tool calls, and the training scripts' fast path."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

import themis_tiny_model

sandbox = pytest.importorskip("jinja2.sandbox")

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}},
}
CALL = {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln"}}}


@pytest.fixture(scope="module")
def template() -> Any:
    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    text = (themis_tiny_model.path("hf") / "chat_template.jinja").read_text(encoding="utf-8")
    return environment.from_string(text)


def test_a_question(template: Any) -> None:
    text = template.render(messages=[{"role": "user", "content": "Hi"}], add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_system_message_and_tools_share_a_turn(template: Any) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    text = template.render(messages=messages, tools=[WEATHER])
    signature = json.dumps(WEATHER)
    assert text == (
        "<|im_start|>system\nBe kind.\n\nYou can call these tools:\n"
        f"<tools>\n{signature}\n</tools><|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )


@pytest.mark.parametrize("arguments", [{"city": "Köln"}, '{"city": "Köln"}'])
def test_tool_call_and_result(template: Any, arguments: Any) -> None:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "21"},
    ]
    assert template.render(messages=messages).endswith(
        '<|im_start|>assistant\n<tool_call>\n{"name": "get_weather", "arguments": '
        '{"city": "Köln"}}\n</tool_call><|im_end|>\n<|im_start|>tool\n21<|im_end|>\n'
    )


def test_text_beside_several_calls(template: Any) -> None:
    message = {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, CALL]}
    one = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'
    text = template.render(messages=[message])
    assert text == f"<|im_start|>assistant\nLet me see.\n{one}\n{one}<|im_end|>\n"


def test_content_in_parts(template: Any) -> None:
    parts = [{"type": "text", "text": "One, "}, {"type": "text", "text": "two."}]
    text = template.render(messages=[{"role": "user", "content": parts}])
    assert text == "<|im_start|>user\nOne, two.<|im_end|>\n"


def test_training_writes_what_the_template_writes() -> None:
    from train.chat import render, render_jinja
    from train.corpus import Mixture

    mixture, rng = Mixture(), random.Random(7)
    for _ in range(150):
        conversation = mixture(rng)
        prompt = rng.random() < 0.5
        messages, tools = conversation.messages, conversation.tools
        assert render(messages, tools, prompt) == render_jinja(messages, tools, prompt)


def test_the_shipped_template_is_the_one_trained_with() -> None:
    from train.chat import template_text

    for name in ("hf", "draft-hf"):
        folder = themis_tiny_model.path(name)
        assert (folder / "chat_template.jinja").read_text(encoding="utf-8") == template_text()
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert config["chat_template"] == template_text()
