"""Options of a template and system prompts: from import to training, and on to what is answered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

TEMPLATE = (
    "{%- for turn in messages %}{{- turn.role + ': ' }}{%- if turn.role == 'assistant' %}"
    "{{- '<think>' + (turn.reasoning_content or '') + '</think>' }}{% endif %}"
    "{{- turn.content + '<|end|>' }}{%- endfor %}{%- if add_generation_prompt %}"
    "{{- 'assistant: <think>' + ('</think>' if not thinks else '') }}{% endif %}"
)
ROW = {"messages": [{"role": "user", "content": "3+3?"}, {"role": "assistant", "content": "6"}]}
THOUGHT = {"messages": [ROW["messages"][0], {**ROW["messages"][1], "reasoning": "Three twice."}]}


@pytest.fixture
def model(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A model whose template has a switch."""
    made = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    (made / "chat_template.jinja").write_text(TEMPLATE)
    return made


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = [json.dumps({**THOUGHT, "id": str(n)}) for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    return tmp_path / "rows.jsonl"


def test_what_was_trained_with_is_used_by_default_and_a_difference_is_told(
    cli: Any, tmp_path: Path, model: Path, rows: Path
) -> None:
    adapter = tmp_path / "adapter"
    told = cli(
        "train", "--model", model, "--data", rows, "--out", adapter, "--runs", tmp_path / "runs",
        "--steps", 2, "--rank", 2, "--template-option", "thinks=true", "--system", "Be brief.",
    )  # fmt: skip
    assert "reasoning:" not in told.err
    trained = json.loads((adapter / "provenance.json").read_text())["tokenizer"]
    assert (trained["options"], trained["system"]) == ({"thinks": True}, "Be brief.")

    def asked(*flags: object) -> tuple[int, str]:
        how = ("--model", model, "--adapter", adapter, "--max-tokens", 2, "--prompt", "3+3?")
        printed = cli("generate", *how, *flags, "--json")
        return json.loads(printed.out)["prompt_tokens"], printed.err

    whole, note = asked()
    assert note.count("\n") == 1 and "system prompt as in training: 'Be brief.'" in note
    bare, note = asked("--system", "")
    assert bare < whole and not note
    longer, note = asked("--system", "", "--template-option", "thinks=false")
    assert longer > bare and "thinks=False; trained with True" in note
    data = ("--data", rows, "--no-generate", "--no-base")
    told = cli("eval", "--model", model, "--adapter", adapter, *data)
    assert "system prompt as in training" in told.err


def test_what_a_template_shows_nowhere_is_told_once_and_refused_with_strict(
    cli: Any, tmp_path: Path, model: Path, rows: Path
) -> None:
    where = ("--model", model, "--data", rows)
    planned = cli("plan", *where)
    told = [line for line in planned.out.splitlines() if "reasoning" in line]
    # Of twelve rows one or more are set aside.
    assert len(told) == 1 and "rows have it, this template shows none" in told[0]
    assert "reasoning:" in cli.refused("plan", *where, "--strict", code=3)
    assert "reasoning:" in cli("data", "show", rows, "--model", model, "--rows", 2).err
    show = ("data", "show", rows, "--model", model, "--rows", 1)
    cli.refused(*show, "--strict", code=3)
    shown = cli.json(*show, "--template-option", "thinks=true", "--strict")
    learned = [t["text"] for t in shown["rows"][0]["tokens"] if t["weight"]]
    assert "".join(learned) == "Three twice.</think>6<|end|>" and not shown["notes"]
    checked = cli.json("data", "check", rows, "--model", model)
    assert checked["counts"]["not-shown"] == 12
    cli.json("data", "check", rows, "--model", model, "--strict", code=3)
    assert "NAME=VALUE" in cli.refused("plan", *where, "--template-option", "thinks", code=2)


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [("missing", "Old."), ("replace", "New."), ("prepend", "New.\n\nOld.")],
)
def test_a_system_prompt_at_import_clean_and_show(
    cli: Any, tmp_path: Path, mode: str, wanted: str
) -> None:
    old = {"messages": [{"role": "system", "content": "Old."}, *ROW["messages"]]}
    source, text = tmp_path / "rows.jsonl", tmp_path / "prompt.txt"
    source.write_text("\n".join(map(json.dumps, (ROW, old))))
    text.write_text("New.\n")
    flags = ("--system", f"@{text}", "--system-mode", mode)
    out, cleaned = tmp_path / "data", tmp_path / "cleaned"

    def systems(folder: Path) -> list[str]:
        lines = (folder / "train.jsonl").read_text().splitlines()
        return [json.loads(line)["messages"][0]["content"] for line in lines]

    cli("data", "import", source, "--out", out, *flags)
    cli("data", "clean", source, "--out", cleaned, "--steps", "whitespace", *flags)
    assert systems(out) == systems(cleaned) == ["New.", wanted]
    shown = cli.json("data", "show", source, "--model", "starter", *flags)
    texts = ["".join(token["text"] for token in row["tokens"]) for row in shown["rows"]]
    assert all(want in text for want, text in zip(("New.", wanted), texts, strict=True))
    assert "empty" in cli.refused("data", "import", source, "--out", "x", "--system", "", code=2)


def test_a_request_tells_the_template_and_tools_need_a_place(model: Path) -> None:
    from mlx_itune.dataset.tokens.tokenizer import load_tokenizer
    from mlx_itune.inference.openai_request import Desk, Refusal, Served

    tokenizer = load_tokenizer(model)
    tokenizer.system = "Be brief."
    desk = Desk({"m": Served(None, tokenizer, None)}, {}, {}, 400)

    def prompt(**fields: Any) -> str:
        body = {"messages": ROW["messages"][:1], **fields}
        return tokenizer.decode(desk.read(json.dumps(body).encode(), True).prompt_ids)

    assert prompt().endswith("<think></think>") and prompt().startswith("system: Be brief.")
    assert prompt(chat_template_kwargs={"thinks": True}).endswith("<think>")
    with pytest.raises(Refusal) as refused:
        prompt(chat_template_kwargs={"messages": []})
    assert refused.value.status == 400
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(Refusal) as refused:
        prompt(tools=[tool])
    assert refused.value.status == 400 and "no place for tools" in str(refused.value)
