"""The studio without a browser: who is let in, what forms become, what outlives it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from starlette.testclient import TestClient

from mlx_itune.cli import cli
from mlx_itune.kit.errors import UsageError
from mlx_itune.studio.forms import FIRST, Commands
from mlx_itune.studio.jobs import Jobs
from mlx_itune.studio.server import application

HOST, TOKEN = "127.0.0.1:8090", "a-token"
OWN = {"Origin": f"http://{HOST}"}


def find(name: str) -> click.Command | None:
    found: click.Command | None = cli
    for part in name.split():
        assert isinstance(found, click.Group)
        found = found.get_command(click.Context(found), part)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("studio")
    (made / "rows.jsonl").write_text('{"question": "2 + 2?", "answer": "4"}\n')
    (made / "out").symlink_to("/etc")
    (made / "drafts").mkdir()
    says = [
        {"role": "user", "content": "<script>1</script>"},
        {"role": "assistant", "content": "a"},
    ]
    drafts = [{"kind": "draft", "id": f"d-{n}", "messages": says, "doubt": n / 4} for n in range(3)]
    lines = "".join(json.dumps(each) + "\n" for each in drafts)
    (made / "drafts/drafts.jsonl").write_text(lines)
    return made


@pytest.fixture(scope="module")
def stranger(folder: Path) -> TestClient:
    app = application(folder, find, token=TOKEN, hosts={HOST})
    return TestClient(app, base_url=f"http://{HOST}", follow_redirects=False)


@pytest.fixture
def user(stranger: TestClient) -> Iterator[TestClient]:
    """Who has opened the address with the token."""
    entered = stranger.get(f"/?token={TOKEN}")
    assert "HttpOnly" in entered.headers["set-cookie"]
    assert "SameSite=strict" in entered.headers["set-cookie"]
    yield stranger
    stranger.cookies.clear()


def test_only_who_has_the_token_comes_in(stranger: TestClient) -> None:
    for path in ("/", "/?token=", "/?token=wrong", "/jobs", "/file?path=rows.jsonl"):
        assert stranger.get(path).status_code == 403
    assert stranger.post("/form/resume", headers=OWN).status_code == 403


def test_pages_of_others_and_other_names_get_nothing(user: TestClient) -> None:
    assert user.get("/").status_code == 200
    assert user.get("/", headers={"Host": "evil.example:8090"}).status_code == 403
    assert user.post("/form/resume", content="run=x").status_code == 403
    for origin in ("null", "http://evil.example", "http://127.0.0.1:8091"):
        assert user.post("/form/resume", headers={"Origin": origin}).status_code == 403
    policy = user.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "out/passwd", "rows.jsonl/../../x", "a\0"])
def test_no_place_outside_is_read(user: TestClient, path: str) -> None:
    assert user.get("/file", params={"path": path}).status_code == 404
    assert user.get("/rows", params={"data": path}).status_code == 404
    sent = {"files": path}
    assert user.post("/form/data/check", data=sent, headers=OWN).status_code == 400
    assert user.post("/try", data={"shipped": path}, headers=OWN).status_code == 404


def test_every_command_of_the_pages_has_a_form(user: TestClient) -> None:
    for name in (name for name in FIRST if find(name) is not None):
        page = user.get(f"/form/{name.replace(' ', '/')}")
        assert page.status_code == 200 and f">mlx-itune {name}<" in page.text
    assert "Rank of the adapter" in user.get("/form/train").text


@pytest.mark.parametrize(
    "name, given, typed",
    [
        (
            "train",
            "model=starter&data=a b&rank=8&seed=",
            "train --model starter --data 'a b' --rank 8",
        ),
        ("train", "rank=4&strict=yes", "train --rank 4 --strict"),
        ("data import", "sources=a.csv 'b c.csv'&out=d", "data import a.csv 'b c.csv' --out d"),
        ("eval", "generate=no-generate", "eval --no-generate"),
        ("train", "num_layers=-1&unknown=1", "train --num-layers -1"),
        ("train", "out=$(id);x", "train --out '$(id);x'"),
    ],
)
def test_a_form_shows_what_would_be_typed(
    user: TestClient, name: str, given: str, typed: str
) -> None:
    head = {**OWN, "Content-Type": "application/x-www-form-urlencoded"}
    shown = user.post(f"/command/{name.replace(' ', '/')}", content=given, headers=head)
    assert shown.text == f"mlx-itune {typed}"


@pytest.mark.parametrize(
    "given", [{"files": ["--lints=x"]}, {"files": ["-x"]}, {"model": ["~/m"]}, {"lints": ["../x"]}]
)
def test_a_value_is_no_option_and_no_place_elsewhere(
    folder: Path, given: dict[str, list[str]]
) -> None:
    with pytest.raises(UsageError):
        Commands(find, folder).command("data check", given)


def test_a_command_outlives_the_studio_and_says_how_it_ended(
    user: TestClient, folder: Path
) -> None:
    sent = user.post("/form/data/check", data={"files": "rows.jsonl"}, headers=OWN)
    id = sent.headers["location"].rpartition("/")[2]
    deadline = time.monotonic() + 60
    # Another studio over the same folder.
    while (job := Jobs(folder).job(id)).running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert job.state == "done" and "1 row, 1 accepted" in job.output
    assert job.command == "mlx-itune data check rows.jsonl"
    assert "1 row, 1 accepted" in user.get(f"/jobs/{id}").text


def test_drafts_are_decided_one_after_the_other_and_text_stays_text(
    user: TestClient, folder: Path
) -> None:
    page = user.get("/review?drafts=drafts&by=ann").text
    assert ">d-2<" in page and "<script>1" not in page and "&lt;script&gt;1" in page
    about = {"drafts": "drafts", "by": "ann", "id": "d-2", "decision": "edit"}
    sent = user.post("/review", data={**about, "content": ["q", "b\r\nc"]}, headers=OWN)
    assert sent.headers["location"] == "/review?drafts=drafts&by=ann"
    (line,) = (folder / "drafts/decisions.jsonl").read_text().splitlines()
    logged = json.loads(line)
    assert logged["by"] == "ann" and [m["content"] for m in logged["messages"]] == ["q", "b\nc"]
    assert ">d-1<" in user.get("/review?drafts=drafts&by=ann").text
    assert user.post("/review", data={**about, "decision": "x"}, headers=OWN).status_code == 404
