"""Chat templates: compiled once, in transformers' sandbox with its extras; and those built in.

`apply_chat_template` of transformers checks and copies every message at every call, many times the
work of rendering; conversations here are plain JSON already. What a template can reach is the same,
and tests compare the two on every family of templates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from mlx_itune.kit.errors import DataError

Message = Mapping[str, Any]


class ChatTemplate:
    """Renders messages. `joins`: the template may take text out of a content.

    Raises DataError at construction for a template that is not Jinja.
    """

    def __init__(self, text: str, special_tokens: Mapping[str, Any]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals |= {
            "raise_exception": _raise,
            "strftime_now": lambda form: datetime.now().strftime(form),
            "namespace": _Namespace,
            # The type itself would offer its class methods and, through them, more.
            "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        }
        try:
            self._tree = environment.parse(text)
            self._template = environment.from_string(text)
        except Exception as error:
            raise DataError(f"the chat template is broken: {error}") from error
        self.text = text
        # Whether text could be taken out of a content, so that what stood around it is joined.
        self.joins = "replace" in text
        self._special = dict(special_tokens)

    def render(
        self, messages: Sequence[Message], tools: Sequence[Message], *, add_generation_prompt: bool
    ) -> str:
        """The text of `messages`. Raises whatever the template raises."""
        return self._template.render(
            self._special,
            messages=messages,
            tools=tools or None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
        )

    def literals(self) -> str:
        """Every string that the template writes or compares with, one per line."""
        data = {node.data for node in self._tree.find_all(nodes.TemplateData)}
        constants = {n.value for n in self._tree.find_all(nodes.Const) if isinstance(n.value, str)}
        return "\n".join(sorted(data | constants))


class _Namespace(Namespace):
    """Jinja's namespace, closed to names that lead into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        given = dict(*args, **kwargs)
        for name in given:
            _refuse_private(name)
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %} marks replies for others; here it shows its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def _raise(message: str) -> Any:
    raise TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter would escape HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


# Templates for base models that bring none, as the Jinja text a fused model carries. All start with
# the BOS token exactly where the tokenizer itself would put one, because templates are tokenized
# without adding special tokens.

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
