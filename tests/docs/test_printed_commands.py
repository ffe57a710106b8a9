"""Every command that README and docs print works as printed, in order, on the starter."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from openpyxl import Workbook

from tests.cli.conftest import ended

ROOT = Path(__file__).resolve().parents[2]
STARTER = ROOT / "mlx_itune/model/starter"
PAGES = [
    "README.md",
    *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md")),
    "data/README.md",
    "adapters/README.md",
]
# A model that the pages name by its Hub id; in the test's cache, that id is the starter.
HUB_ID = re.compile(r"mlx-community/[\w.-]+")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FETCHED = "mlx-itune models get smollm2"
# Of set-up, of other machines, and the project's own targets: not for a test.
ELSEWHERE = ("pip install", "make ", "mlx.launch", "mlx.distributed_config", "git ", FETCHED)
# What a page has from earlier ones where it does not make it.
GIVEN = {
    **dict.fromkeys(("adapter", "adapters/notes", "adapters/triage"), "adapter"),
    **dict.fromkeys(("fused", "exported/mlx"), "fused"),
}
# What would take minutes is made shorter; so are the files of a sample data set.
SHORTER = (
    ("--steps 800", "--steps 4"),
    ("--steps 200", "--steps 4"),
)


def printed(page: str) -> list[str]:
    """The commands of a page: lines of its shell blocks, and indented lines that begin as one."""
    found, fence = [], ""
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            fence = "" if fence else line.removeprefix("```").strip() or "text"
        elif fence == "sh" or (not fence and line.startswith("    mlx-itune ")):
            command = re.sub(r"\s+#\s.*$", "", line).strip()
            if command and not command.startswith(("#", *ELSEWHERE)):
                found.append(command)
    return found


def few(name: str, count: int) -> list[dict[str, Any]]:
    """Its shortest rows: a fused model is read back by mlx-lm, which is slow on a CPU."""
    text = (ROOT / "data" / name).read_text(encoding="utf-8")
    rows = json.loads(text) if name.endswith(".json") else [*map(json.loads, text.splitlines())]
    return sorted(rows, key=lambda row: len(str(row)))[:count]


def write_lines(name: str | Path, rows: list[dict[str, Any]]) -> Path:
    path = Path(name)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader of a later page has from earlier ones: an adapter and a fused model."""
    place = tmp_path_factory.mktemp("made")
    rows = write_lines(place / "rows.jsonl", few("messages.jsonl", 4))
    model = ("--model", "starter", "--data", rows, "--runs", place / "runs")
    short = ("--out", place / "adapter", "--steps", 2, "--max-length", 512)
    assert ended("train", *model, *short) == 0
    tuned = ("--adapter", place / "adapter", "--out", place / "fused")
    assert ended("fuse", *model, *tuned, "--bits", 8, "--no-score") == 0
    return place


@pytest.fixture
def desk(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the files that the pages speak of."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "data", "data")
    with Path("notes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(few("question_answer.jsonl", 10))
    kinds = [(f"Where is my card number {n}?", ("late", "lost")[n % 2]) for n in range(40)]
    with Path("tickets.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "category"), *kinds])
    book = Workbook()
    for row in (["Tickets of November"], [], ["Message", "Queue"], *kinds):
        book.active.append(row)
    book.save("tickets.xlsx")
    Path("drafts").mkdir()
    says = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    drafted = {"kind": "draft", "id": "d-000000000000", "messages": says}
    Path("drafts/drafts.jsonl").write_text(json.dumps(drafted))
    city = {"type": "object", "properties": {"city": {"enum": ["Riga"]}}, "required": ["city"]}
    Path("schema.json").write_text(json.dumps(city))
    for name, source in (
        ("alpaca_data.json", "alpaca.json"),
        ("math.toml", "templates/grade_school_math.toml"),
    ):
        shutil.copy(f"data/{source}", name)
    Path("chats.json").write_text(json.dumps(few("sharegpt.json", 4)))
    write_lines("rows.jsonl", few("messages.jsonl", 11))
    write_lines("test.jsonl", few("messages.jsonl", 4))
    asked = [f"What is {n} + 1?" for n in range(40)]
    sums = [{"question": q, "prompt": q, "answer": f"#### {n}"} for n, q in enumerate(asked, 1)]
    for name in ("gsm8k.jsonl", "prompts.jsonl"):
        write_lines(name, sums)
    return tmp_path


def given(page: str, made: Path) -> None:
    """Adapters and fused models, but where the page itself makes them."""
    text = "\n".join(printed(page))
    for name, source in GIVEN.items():
        if not re.search(rf"--out {name}(\s|$)", text):
            shutil.copytree(made / source, name)
    if "mlx-itune train" not in text:
        shutil.copytree(made / "runs", "runs")


def hub(ids: set[str]) -> None:
    """Each id in the cache of the Hub, with a chat template as such models have one."""
    from huggingface_hub import constants

    for name in ids:
        folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
        snapshot = folder / "snapshots" / ("0" * 40)
        if not snapshot.exists():
            shutil.copytree(STARTER, snapshot)
            (snapshot / "chat_template.jinja").write_text(CHATML)
            (folder / "refs").mkdir()
            (folder / "refs/main").write_text("0" * 40)


def served(argv: list[str]) -> int:
    """A server that said where it is, and was then stopped as a user stops it."""
    command = [sys.executable, "-m", "mlx_itune", *argv, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "http://" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        return process.wait(timeout=30)


def shell(command: str) -> int:
    command = command.replace("mlx-itune", f"{sys.executable} -m mlx_itune")
    return subprocess.run(command, shell=True, check=False).returncode


@pytest.mark.parametrize("page", [page for page in PAGES if printed(page)])
def test_every_command_of_a_page_works_in_order(
    page: str,
    made: Path,
    desk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    commands = printed(page)
    assert len(commands) >= (9 if page == "README.md" else 1)
    hub({name for line in commands for name in HUB_ID.findall(line)})
    given(page, made)
    for command in commands:
        for long, short in SHORTER:
            command = command.replace(long, short)
        if command.startswith("mlx-itune tune"):
            command += " --yes --time 1s"
        if command.startswith("mlx-itune train") and "--steps" not in command:
            command += " --steps 4"
        # A page may show one output made in several ways.
        out = re.search(r"--out (\S+)", command)
        if out and Path(out[1]).exists():
            shutil.rmtree(out[1]) if Path(out[1]).is_dir() else Path(out[1]).unlink()
        argv = shlex.split(command)
        if "|" in argv or "&&" in argv:
            code = shell(command)
        elif argv[:2] == ["mlx-itune", "serve"]:
            code = served(argv[1:]) - 130
        else:
            assert argv[0] == "mlx-itune", command
            # What a user types in a chat.
            monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
            code = ended(*argv[1:])
        if argv[:3] == ["mlx-itune", "data", "sample"]:
            for file in Path(argv[argv.index("--out") + 1]).glob("*.jsonl"):
                file.write_text("".join(file.read_text().splitlines(keepends=True)[:12]))
        assert code == 0, f"{page}: {command}\n{capfd.readouterr().err[-2000:]}"
