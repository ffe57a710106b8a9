"""The compiled template writes what transformers writes."""

import random
from pathlib import Path

import chat_templates as t
import pytest
from small_tokenizers import fast

from mlx_itune.dataset.tokens.chat_template import ChatTemplate
from mlx_itune.kit.errors import DataError

FAMILIES = {p.stem: p.read_text() for p in (Path(__file__).parents[1] / "masks").rglob("*.jinja")}
FAMILIES |= {name: text for name, text in vars(t).items() if name.isupper()}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def messages(dice: random.Random) -> list[dict[str, str]]:
    texts = ["Hi", " a ", "\n\nx\n", "</think> b", "日本\u3000", "it's {{ x }}", "…", "user", "\t"]
    roles = ["system"] * dice.randrange(2) + ["user", "assistant"] * dice.randrange(1, 4)
    return [{"role": role, "content": dice.choice(texts)} for role in roles[: dice.randrange(1, 9)]]


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_text_is_transformers_text(name):
    hf, ours = fast("gpt2"), ChatTemplate(FAMILIES[name], SPECIAL)
    hf.chat_template = FAMILIES[name]
    dice, refused = random.Random(name), 0
    for _ in range(30):
        row, prompt = messages(dice), dice.random() < 0.5
        try:
            theirs = hf.apply_chat_template(row, tokenize=False, add_generation_prompt=prompt)
        except Exception:
            refused += 1
            with pytest.raises(Exception):  # noqa: B017
                ours.render(row, (), add_generation_prompt=prompt)
        else:
            assert ours.render(row, (), add_generation_prompt=prompt) == theirs
    assert refused < 30 or name == "command_r_tools"  # which wants tools


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__ }}",
        "{{ messages.append(1) }}",
        "{{ namespace(__class__=1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ dict.__base__ }}",
        "{{ (messages[0].content.format)('a') and ''.format.__self__.__class__ }}",
    ],
)
def test_templates_stay_in_their_sandbox(attack):
    row = [{"role": "user", "content": "x"}]
    try:
        text = ChatTemplate(attack, {}).render(row, (), add_generation_prompt=False)
    except Exception:
        return
    assert "class" not in text and "<" not in text


def test_a_broken_template_is_one_line():
    with pytest.raises(DataError, match="the chat template is broken"):
        ChatTemplate("{% if %}", {})
