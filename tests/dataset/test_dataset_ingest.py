"""`data ingest`: 41 documents of ten kinds by many producers, and what is made to break it."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import zipfile
from collections import Counter
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import pytest

from mlx_itune.dataset.ingest import worker
from mlx_itune.kit.errors import DataError
from tests.dataset.data_command import DataRun

# Written by Chromium, ReportLab, fpdf2, WeasyPrint and groff (pdf); pandoc, python-docx and
# python-pptx (docx, pptx); pandoc (epub); Python's e-mail package; by hand. known.json has what
# each of them says.
DOCUMENTS = Path(__file__).parents[1] / "fixtures/documents.zip"
SMALL = ("a.txt", "b.md", "c.html", "d.docx", "epy.pptx", "f.epub", "gchrome.pdf", "i.eml", "h.csv")


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def passages(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "passages.jsonl").open(encoding="utf-8")]


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("documents")
    zipfile.ZipFile(DOCUMENTS).extractall(place)
    return place


def test_what_documents_say_is_in_passages_in_order_with_their_places(
    run: DataRun, documents: Path
) -> None:
    shutil.copytree(documents, run.home / "all")
    known = json.loads((run.home / "all/known.json").read_text())
    (run.home / "all/known.json").unlink()
    (run.home / "all/picture.png").write_bytes(b"\x89PNG")
    made = run("ingest", run.home / "all", out="docs")
    assert made["rejected"] == [] and made["skipped"] == {".png": 1}
    found: dict[str, list[dict[str, Any]]] = {}
    for each in passages(run.home / "docs"):
        assert len(each["text"]) <= 2000
        found.setdefault(each["source"], []).append(each)
    assert found.keys() == known.keys() == {file["source"] for file in made["files"]}
    for name, text in known.items():
        wanted, got = words(text), words(" ".join(each["text"] for each in found[name]))
        common = sum((Counter(wanted) & Counter(got)).values())
        assert common >= 0.98 * len(wanted), name
        assert len(got) - common <= 0.02 * len(wanted), name
        if len(wanted) < 2000:
            assert SequenceMatcher(None, wanted, got, autojunk=False).ratio() >= 0.98, name
        source = (run.home / f"docs/text/{name}.txt").open(encoding="utf-8", newline="").read()
        assert all(source[each["start"] : each["end"]] == each["text"] for each in found[name])
    assert [each["page"] for each in found["gchrome2.pdf"]] == sorted(
        each["page"] for each in found["gchrome2.pdf"]
    )
    for name in ("b.md", "c.html", "d.docx", "epy.pptx", "f.epub", "gchrome.pdf"):
        headings = {each["heading"] for each in found[name]}
        assert all(re.search("Section [A-Z] about|Table|Footnotes|^x", h) for h in headings), name
    for name in ("gfpdf.pdf", "grl.pdf"):
        assert "alpha | 8080" in (run.home / f"docs/text/{name}.txt").read_text()
    told = run.told("ingest", run.home / "all/grl.pdf", run.home / "all/iatt.eml", out="again")
    assert "lines left out: running headers, footers, page numbers" in told
    assert "attachments not read: r.pdf" in told and "mlx-itune data grow" in told


def archive(members: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return made.getvalue()


def word(body: str, before: str = "") -> bytes:
    space = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    text = f'<?xml version="1.0"?>{before}<w:document xmlns:w="{space}"><w:body>{body}</w:body>'
    return archive({"word/document.xml": f"{text}</w:document>".encode()})


LAUGHS = '<!DOCTYPE z [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
LOOP = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
    b"2 0 obj<</Type/Pages/Kids[2 0 R 2 0 R]/Count 9>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF"
)
# Two pages without a word, one with some.
SCANS = (
    b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
    b"2 0 obj<</Type/Pages/Kids[3 0 R 4 0 R 5 0 R]/Count 3/MediaBox[0 0 600 800]>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R>>endobj\n4 0 obj<</Type/Page/Parent 2 0 R>>endobj\n"
    b"5 0 obj<</Type/Page/Parent 2 0 R/Contents 6 0 R/Resources<</Font<</F 7 0 R>>>>>>endobj\n"
    b"6 0 obj<</Length 44>>stream\nBT /F 12 Tf 60 700 Td (Words of a page.) Tj ET \n"
    b"endstream endobj\n"
    b"7 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF"
)
OUTSIDE = b"<container><rootfile full-path='../../x'/></container>"
MADE = {
    "bomb.docx": lambda: archive({"word/document.xml": bytes(130 << 20)}),
    "laughs.docx": lambda: word("<w:p><w:r><w:t>&i;</w:t></w:r></w:p>", LAUGHS + "]>"),
    "outside.docx": lambda: word(
        "<w:p><w:r><w:t>&x;</w:t></w:r></w:p>", '<!DOCTYPE z [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    ),
    "deep.docx": lambda: word("<w:p>" * 5000),
    "no-main.docx": lambda: archive({"x": b"y"}),
    "old.docx": lambda: b"\xd0\xcf\x11\xe0" + bytes(600),
    "loop.pdf": lambda: LOOP,
    "page.pdf": lambda: b"<html>no pdf</html>",
    "picture.txt": lambda: b"\x89PNG\r\n\x1a\n" + bytes(50),
    "zeros.txt": lambda: b"a\0b\0\0c" * 50,
    "empty.md": lambda: b"",
    "blank.txt": lambda: b" \n\n",
    "packed.csv": lambda: b"\x1f\x8b\x08\0" + bytes(20),
    "deep.html": lambda: b"<div>" * 100_000,
    "nothing.html": lambda: b"<script>1</script>",
    "within.html": lambda: b"<p>words <a href='x",
    "program.html": lambda: b"\x7fELF" + bytes(600),
    "sealed.eml": lambda: b"Subject: s\nContent-Type: application/pkcs7-mime; name=p7m\n\nMIAG",
    "part.eml": lambda: b"Subject: s\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nwords\n",
    "end.pdf": lambda: SCANS.replace(b"%%EOF", b""),
    "headless.eml": lambda: b"no headers at all",
    "book.epub": lambda: archive({"META-INF/container.xml": OUTSIDE}),
}  # fmt: skip


def test_what_breaks_is_one_line_each_and_nothing_else_is_lost(
    run: DataRun, documents: Path
) -> None:
    folder, draw = run.home / "hostile", random.Random(1)
    folder.mkdir()
    hostile = {name: make() for name, make in MADE.items()}
    for name in SMALL:
        data = (documents / name).read_bytes()
        stem, _, end = name.partition(".")
        for n in range(8):
            hostile[f"{stem}-cut{n}.{end}"] = data[: draw.randrange(1, len(data))]
            spoilt = bytearray(data)
            for _ in range(1 + len(data) // 300):
                spoilt[draw.randrange(len(data))] = draw.randrange(256)
            hostile[f"{stem}-spoilt{n}.{end}"] = bytes(spoilt)
        for other in ("pdf", "docx", "epub", "pptx"):
            if other != end:
                hostile[f"{stem}-lies.{other}"] = data
    assert len(hostile) >= 190
    for name, data in hostile.items():
        (folder / name).write_bytes(data)
    for name in SMALL:
        shutil.copy(documents / name, folder / f"good-{name}")
    (folder / "round").symlink_to(folder, target_is_directory=True)
    (folder / "gone.txt").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.txt")
    made = run("ingest", folder, out="docs")
    read = {file["source"] for file in made["files"]}
    refused = {each["file"]: each["message"] for each in made["rejected"]}
    assert {f"good-{name}" for name in SMALL} <= read
    assert read | refused.keys() == {
        *hostile,
        *(f"good-{n}" for n in SMALL),
        "gone.txt",
        "pipe.txt",
    }
    assert not read & refused.keys()
    # What was made by hand is refused, but for tags without an end and entities that say nothing.
    assert MADE.keys() - refused.keys() <= {"deep.docx", "deep.html", "laughs.docx"}
    assert all("lies" in name or name in read | refused.keys() for name in hostile)
    assert all(f"{n.partition('.')[0]}-lies.pdf" in refused for n in SMALL if "pdf" not in n)
    assert all(message and "\n" not in message for message in refused.values())
    text = (run.home / "docs/passages.jsonl").read_text()
    assert "root:" not in text and "hahahaha" not in text
    # Those that were refused left nothing behind.
    assert {each["source"] for each in passages(run.home / "docs")} == read
    assert "encrypted" in refused["old.docx"] and "is no docx" in refused["old.docx"]


def test_a_long_text_is_cut_at_sentences_and_what_is_there_is_not_overwritten(
    run: DataRun,
) -> None:
    text = " ".join(f"Sentence number {n} says a little." for n in range(300))
    (run.home / "long.txt").write_text(f"{text}\n")
    made = run("ingest", run.home / "long.txt", "--max-characters", 500, out="docs")
    found = [each["text"] for each in passages(run.home / "docs")]
    assert made["passages"] == len(found) > 15
    assert all(each.endswith(".") and 250 < len(each) <= 500 for each in found[:-1])
    assert words(" ".join(found)) == words(text)
    assert "already exists" in run.told("ingest", run.home / "long.txt", out="docs", code=5)
    assert "no such" in run.told("ingest", run.home / "lost", out="x", code=3)
    inside = run.told("ingest", run.home, out="inside", code=2)
    assert "lies inside" in inside


def test_scanned_pages_are_named_and_a_missing_library_is_one_line(
    run: DataRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run.home / "in").mkdir()
    (run.home / "in/half.pdf").write_bytes(SCANS)
    (run.home / "in/form.html").write_text(
        "<form><aside>A note.<script>No.</script> Two.</aside><p hidden>No.</p>"
        "<table><tr><td>H<sub>2</sub>O<br>wet<style>No.</style> ice<p>b</p><td>c</table></form>"
    )
    made = run("ingest", run.home / "in", out="docs")
    notes = {file["source"]: file["notes"] for file in made["files"]}
    assert notes["half.pdf"][0].startswith("pages 1-2: no text; scanned")
    found = [(each["page"], each["text"]) for each in passages(run.home / "docs")]
    assert found == [(None, "A note. Two.\n\nH2O wet ice b | c"), (3, "Words of a page.")]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    told = run.told("ingest", run.home / "in", out="new", code=2)
    assert "reading html, pdf needs lxml pypdfium2" in told and "[documents]" in told


def test_a_reader_that_takes_too_much_ends_alone(
    run: DataRun, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds, memory, why in ((0.0, 2 << 30, "took longer"), (60.0, 1, "of memory")):
        # The process that parses has the package's own limits: what it does is done here.
        code = f"import {worker.__name__} as w; w._MEMORY_BYTES = {memory}; w.serve()"
        monkeypatch.setattr(worker, "_LEAST_S", seconds)
        monkeypatch.setattr(worker, "_SERVE", code)
        with worker.Worker() as process, pytest.raises(DataError, match=why):
            for _ in range(200):
                list(process.blocks(documents / "grl.pdf", "pdf", print))
