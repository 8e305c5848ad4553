"""Small chat templates, one for each form of tool calls, and a tokenizer to go with them."""

from __future__ import annotations

TOOLS = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
CHATML = (
    TOOLS + "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '\n' if not loop.first }}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    TOOLS + "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if m.tool_calls %}{% if m.tool_calls | length > 1 %}{{ raise_exception('one only') }}"
    '{% endif %}{% set f = m.tool_calls[0].function %}{"name": "{{ f.name }}", "parameters": '
    "{{ f.arguments | tojson }}}{% else %}{{ m.content | trim }}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL_LIST = (
    "[AVAILABLE_TOOLS]" + TOOLS + "[/AVAILABLE_TOOLS]{% for m in messages %}"
    "{% if m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}"
    '{% set out = c.function | tojson %}{{ out[:-1] }}, "id": "{{ c.id }}"}'
    "{{ ', ' if not loop.last }}{% endfor %}]</s>{% elif m.role == 'user' %}"
    "[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
MISTRAL_NAMED = (
    "[AVAILABLE_TOOLS]" + TOOLS + "[/AVAILABLE_TOOLS]{% for m in messages %}"
    "{% if m.tool_calls %}{% for c in m.tool_calls %}[TOOL_CALLS]{{ c.function.name }}"
    "[ARGS]{{ c.function.arguments | tojson }}{% endfor %}</s>{% elif m.role == 'user' %}"
    "[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
    "{# [THINK] [/THINK] #}"
)
MISTRAL_IDS = MISTRAL_NAMED.replace("[ARGS]", "[CALL_ID]{{ c.id }}[ARGS]").partition("{#")[0]
THINKING = CHATML.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if deep %}<think>\n{% endif %}{% endif %}{# </think> #}",
)
NO_TOOLS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}"


class CharTokenizer:
    """A token for each byte, 256 to end, and one for each of `specials`, from 257 on."""

    end_tokens = frozenset({256})
    template_tokens: dict[str, str] = {"bos_token": "", "eos_token": "</s>"}

    def __init__(self, chat_template: str | None = None, specials: tuple[str, ...] = ()) -> None:
        self.chat_template = chat_template
        self.special_tokens = {text: 257 + i for i, text in enumerate(specials)}
        self.vocab_size = 257 + len(specials)

    def encode(self, text: str, *, parse_special: bool) -> list[int]:
        ids: list[int] = []
        while text:
            special = next(
                (s for s in self.special_tokens if parse_special and text.startswith(s)), None
            )
            if special is not None:
                ids.append(self.special_tokens[special])
                text = text[len(special) :]
            else:
                ids += text[0].encode()
                text = text[1:]
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b""
