"""Built-in chat templates for base models that bring none, as the Jinja text a fused model carries.

All start with the BOS token exactly where the tokenizer itself would put one, because templates
are tokenized without adding special tokens.
"""

from __future__ import annotations

# Stanford Alpaca's two prompt texts (train.py, PROMPT_DICT), byte for byte: nothing follows
# "### Response:". A system turn replaces the opening sentence; later turns repeat the sections.
_ALPACA = """\
{%- if tools %}{{ raise_exception('the alpaca template has no place for tools') }}{% endif %}
{%- for m in messages %}
{%- if m['tool_calls'] or m['role'] == 'tool' %}
{{- raise_exception('the alpaca template has no place for tool turns') }}
{%- elif m['role'] == 'system' %}
{{- m['content'] + '\\n\\n' }}
{%- elif m['role'] == 'user' %}
{%- if not loop.first and loop.previtem['role'] == 'assistant' %}
{{- '\\n\\n' }}
{%- elif loop.first and m['input'] %}
{{- 'Below is an instruction that describes a task, paired with an input that provides further \
context. Write a response that appropriately completes the request.\\n\\n' }}
{%- elif loop.first %}
{{- 'Below is an instruction that describes a task. Write a response that appropriately completes \
the request.\\n\\n' }}
{%- endif %}
{%- if m['input'] %}
{{- '### Instruction:\\n' + m['instruction'] + '\\n\\n### Input:\\n' + m['input'] + '\\n\\n' }}
{%- else %}
{{- '### Instruction:\\n' + m['content'] + '\\n\\n' }}
{%- endif %}
{%- else %}
{{- '### Response:' + m['content'] + eos_token }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Response:' }}{% endif %}"""

_CHATML = """\
{%- if tools %}{{ raise_exception('the chatml template has no place for tools') }}{% endif %}
{%- for m in messages %}
{%- if m['tool_calls'] %}
{{- raise_exception('the chatml template has no place for tool calls') }}
{%- endif %}
{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] }}{{ END }}{{ '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# Vicuna v1.1 and later (FastChat, conversation.py, ADD_COLON_TWO): one space between everything but
# after the end token.
_VICUNA = """\
{%- if tools %}{{ raise_exception('the vicuna template has no place for tools') }}{% endif %}
{%- for m in messages %}
{%- if m['tool_calls'] or m['role'] == 'tool' %}
{{- raise_exception('the vicuna template has no place for tool turns') }}
{%- elif m['role'] == 'system' %}
{{- m['content'] + ' ' }}
{%- elif m['role'] == 'user' %}
{%- if loop.first %}
{{- 'A chat between a curious user and an artificial intelligence assistant. The assistant gives \
helpful, detailed, and polite answers to the user\\'s questions. ' }}
{%- endif %}
{{- 'USER: ' + m['content'] + ' ' }}
{%- else %}
{{- 'ASSISTANT: ' + m['content'] + eos_token }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""

BUILT_IN = ("alpaca", "chatml", "vicuna")


def built_in(name: str, *, adds_bos: bool, knows_im_end: bool) -> str:
    """The Jinja text of a built-in template for a tokenizer with these traits."""
    # Without its own <|im_end|> token a turn ends with the tokenizer's end token: a model can only
    # stop at a token, not at a string.
    end = "'<|im_end|>'" if knows_im_end else "eos_token"
    text = {"alpaca": _ALPACA, "vicuna": _VICUNA, "chatml": _CHATML.replace("END", end)}[name]
    return "{{- bos_token }}" + text if adds_bos else text
