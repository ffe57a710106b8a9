"""`import mlx_itune as mi`: docs/python.md runs as it stands; records have the keys of --json."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mlx_itune as mi
from mlx_itune.api import answers, rows, scoring, shipping, shown, training, tune
from tests.cli.conftest import Cli
from tests.test_architecture import HEAVY

ROOT = Path(__file__).resolve().parents[1]
# What would take minutes is made shorter.
SHORTER = (
    ("steps=200", "steps=2"),
    ('time="10m"', 'time="2s"'),
    ("max_new_tokens=64", "max_new_tokens=8"),
)
ROWS = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}]}
    for n in range(24)
]


def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    cells = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"print": lambda *what, end="": None}
    for cell in cells:
        for long, short in SHORTER:
            cell = cell.replace(long, short)
        exec(compile(cell, "docs/python.md", "exec"), names)
    assert len(names["losses"]) == 2 and names["exported"].artifacts[0].bytes
    assert set(json.loads(names["answer"].text)) == {"item", "city"}
    # Nothing is printed, not by libraries either.
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def home(tiny_quantized_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with rows and what commands, in the order of the cases, make of them."""
    place = tmp_path_factory.mktemp("home")
    (place / "model").symlink_to(tiny_quantized_dir)
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        yield place


ON_MODEL = "--model model --data rows.jsonl"


@pytest.mark.parametrize(
    ("command", "record", "more"),
    [
        ("data check rows.jsonl", mi.Checked, ""),
        ("data stats rows.jsonl", mi.Stats, "data html"),
        ("data import rows.jsonl --out folder", mi.Imported, ""),
        ("data clean rows.jsonl --out cleaned", mi.Cleaned, "out"),
        ("data show rows.jsonl --model model", mi.Shown, ""),
        (f"plan {ON_MODEL}", mi.Plan, ""),
        (f"train {ON_MODEL} --out adapter --steps 1", mi.TrainResult, ""),
        ("resume last", mi.Resumed, ""),
        (f"eval {ON_MODEL} --adapter adapter --max-new-tokens 2", mi.Evaluated, ""),
        (f"compare {ON_MODEL} --adapter adapter --no-generate", mi.Compared, ""),
        ("generate --model model hello --max-tokens 2", mi.Generated, ""),
        (f"fuse {ON_MODEL} --adapter adapter --out fused --bits 8", mi.FuseResult, ""),
        ("export --model fused --to mlx --out mlx --data rows.jsonl", mi.Exported, ""),
    ],
)
def test_a_record_has_the_keys_of_json(
    home: Path, capsys: pytest.CaptureFixture[str], command: str, record: Any, more: str
) -> None:
    keys = {field.name for field in dataclasses.fields(record)} | {*more.split()}
    # Rows with their answers are many; --out keeps them.
    assert Cli(capsys).json(*command.split()).keys() == keys - {"answers"}


def test_in_another_thread_runs_and_answers_are_the_same(home: Path) -> None:
    found = {}

    def work(name: str) -> None:
        result = mi.train("model", "rows.jsonl", name, steps=2, seed=1)
        found[name] = result.train_loss, mi.generate(None, "3?", adapter=name, max_tokens=3).text

    work("here")
    thread = threading.Thread(target=work, args=("there",))
    thread.start()
    thread.join()
    assert found["here"] == found["there"]
    assert [run.state for run in mi.runs()][-2:] == ["finished", "finished"]


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: mi.train("model", "rows.jsonl", "x", batchsize=8), "did you mean batch_size"),
        (lambda: mi.train("model", "rows.jsonl", "x", batch_size="8"), "a whole number is needed"),
        (lambda: mi.train("model"), "missing --data, --out"),
        (lambda: mi.check("rows.jsonl", near_duplicate=False), "did you mean near_duplicates"),
        (lambda: mi.show("rows.jsonl", "model", learn="some"), "'all', 'last' or 'marked'"),
        (lambda: mi.generate("model", " "), "the prompt is empty"),
        (lambda: mi.load(), "there is no model"),
        (lambda: mi.fuse("model", "adapter", "y", wya="exact"), "did you mean way?"),
        (lambda: mi.export("model", "y", to="zip"), "there is no format 'zip'"),
    ],
)
def test_a_wrong_setting_is_one_error(home: Path, call: Any, told: str) -> None:
    with pytest.raises(mi.UsageError, match=re.escape(told)) as refused:
        call()
    assert "\n" not in str(refused.value)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, mlx_itune; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {*HEAVY, "pydantic", "click"}


def test_editors_see_the_names_that_there_are() -> None:
    tree = ast.parse(inspect.getsource(mi))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(seen) == mi.__all__ and set(mi.__all__) < set(dir(mi))
    for name, module in seen.items():
        made = getattr(mi, name)
        assert made.__doc__ and made is getattr(sys.modules[str(module)], name)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = mi.trian  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", [answers, rows, scoring, shipping, shown, training, tune])
def test_verbs_say_what_they_raise(module: Any) -> None:
    """Every name of the package that is a function says so, and takes what it does not know."""
    verbs = [getattr(module, name) for name in mi.__all__ if hasattr(module, name)]
    functions = [
        each for each in verbs if inspect.isfunction(each) and each.__module__ == module.__name__
    ]
    assert functions
    for each in functions:
        assert "Raises" in (each.__doc__ or "") or each.__name__ == "generate", each
