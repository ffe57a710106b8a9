"""Side by side: the tuned model is no distance from itself, the base is, a fused one is near."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_itune.cli import main
from tests.conftest import write_tiny_model
from tests.inference.served import write_adapter

ROWS = [
    {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
    for q, a in (("The patient takes metformin.", "yes"), ("Allergies?", "none known."))
]


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main([*argv, "--offline"])
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


@pytest.fixture
def data(tmp_path: Path) -> str:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS))
    return str(file)


def test_base_tuned_and_fused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_quantized_dir: Path, data: str
) -> None:
    base, fused = str(tiny_quantized_dir), str(tmp_path / "fused")
    adapter = str(write_adapter(base, tmp_path / "a", "grid", seed=1, template="chatml"))
    model = ("--model", base, "--adapter", adapter)
    code, _, err = run(capsys, "fuse", *model, "--out", fused, "--data", data, "--allow-lossy")
    assert code == 0, err
    asked = ("compare", *model, "--data", data, "--max-new-tokens", "6", fused)
    code, out, err = run(capsys, *asked, "--json")
    body = json.loads(out)
    assert (code, body["reference"], body["rows"]) == (0, "tuned", 2)
    plain, tuned, other = body["models"]
    assert [each["model"] for each in body["models"]] == ["base", "tuned", fused]
    assert tuned["kl_mean"] == 0 and tuned["top1_agreement"] == 1
    assert plain["kl_mean"] > 100 * max(other["kl_mean"], 1e-6)
    assert other["loss"] == pytest.approx(tuned["loss"], abs=0.01)
    assert plain["loss"] != pytest.approx(tuned["loss"], abs=0.01)
    code, out, _ = run(capsys, *asked, "--no-generate")
    assert code == 0 and "tuned" in out and "mean KL" in out


def test_another_vocabulary_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, data: str
) -> None:
    tiny = str(write_tiny_model(tmp_path / "tiny"))
    code, _, err = run(
        capsys, "compare", "--model", tiny, "--data", data, "--no-generate", "starter"
    )
    assert (code, err.splitlines()[-1].startswith("error: starter: has another")) == (4, True)


def test_a_mistyped_model_is_told_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tiny_quantized_dir: Path,
    data: str,
) -> None:
    monkeypatch.setattr("mlx_itune.inference.opening.open_model", pytest.fail)
    model = ("--model", str(tiny_quantized_dir), "--data", data)
    code, out, err = run(capsys, "compare", *model, "nowhere")
    assert (code, out, err.count("\n")) == (4, "", 1) and "nowhere: no such model" in err
