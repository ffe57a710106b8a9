"""One table as twenty people save it: the same rows, or one line that says what to type."""

from __future__ import annotations

import csv
import io
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pytest

ROWS = [
    ("Wie groß ist „das Größte“, ungefähr?", "Sehr groß: 12 m"),
    ("Ça va à Besançon, où l'été dure?", "Oui; très bien"),
    ("Was kostet das, in €?", "7"),
]
SAID = "|".join(f"{question}|{answer}" for question, answer in ROWS)
HEADER = ("question", "answer")


def text(
    rows: Any = ROWS,
    header: tuple[str, ...] = HEADER,
    *,
    delimiter: str = ",",
    end: str = "\n",
    encoding: str = "utf-8",
    above: str = "",
) -> bytes:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, lineterminator=end).writerows([header, *rows])
    return (above + file.getvalue()).encode(encoding)


def book(change: Callable[[Any], None], rows: Any = (HEADER, *ROWS)) -> bytes:
    workbook = openpyxl.Workbook()
    for row in rows:
        workbook.active.append(row)
    change(workbook.active)
    file = io.BytesIO()
    workbook.save(file)
    return file.getvalue()


def ods() -> bytes:
    def cell(said: str) -> str:
        kind = 'office:value-type="string"'
        return f"<table:table-cell {kind}><text:p>{said}</text:p></table:table-cell>"

    rows = "".join(
        f"<table:table-row>{''.join(map(cell, row))}</table:table-row>" for row in (HEADER, *ROWS)
    )
    names = "".join(
        f' xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"'
        for name in ("office", "table", "text")
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        kind = "application/vnd.oasis.opendocument.spreadsheet"
        archive.writestr("mimetype", kind)
        archive.writestr(
            "META-INF/manifest.xml",
            '<m:manifest xmlns:m="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0">'
            f'<m:file-entry m:full-path="/" m:media-type="{kind}"/></m:manifest>',
        )
        archive.writestr(
            "content.xml",
            f"<office:document-content{names}><office:body><office:spreadsheet>"
            f'<table:table table:name="A">{rows}<table:table-row table:number-rows-repeated="1000">'
            '<table:table-cell table:number-columns-repeated="16384"/></table:table-row>'
            "</table:table></office:spreadsheet></office:body></office:document-content>",
        )
    return file.getvalue()


def shifted(sheet: Any) -> None:
    sheet.insert_rows(1, 3)
    sheet["A1"] = "Support questions, exported by the help desk on 2024-12-31"
    sheet.merge_cells("A1:D1")
    sheet.insert_cols(1, 2)


def numbers(sheet: Any) -> None:
    sheet["B4"] = 7


GAP = [ROWS[0], ("", ""), *ROWS[1:]]
SAME = {
    "pandas.csv": text([(n, *row) for n, row in enumerate(ROWS)], ("", *HEADER)),
    "excel-utf8.csv": text(encoding="utf-8-sig", end="\r\n"),
    "german-windows.csv": text(delimiter=";", end="\r\n", encoding="cp1252"),
    "excel-unicode.csv": text(delimiter="\t", end="\r\n", encoding="utf-16"),
    "utf16-without-mark.csv": text(encoding="utf-16-le"),
    "old-mac.csv": text(delimiter=";", end="\r", encoding="mac_roman"),
    "mac.csv": text(encoding="mac_roman"),
    "numbers.csv": text(above="Table 1\n"),
    "excel-hint.csv": text(delimiter=";", end="\r\n", above="sep=;\r\n"),
    "capitals.csv": text(header=(" Question", "ANSWER ")),
    "empty-columns.csv": text([(*row, "", "") for row in ROWS], (*HEADER, "", ""), delimiter=";"),
    "empty-rows.csv": text(GAP).replace(b",\n", b"\n"),
    "pipes.csv": text(delimiter="|"),
    "copied-from-the-web.tsv": text([(f"{q}\u00a0", a) for q, a in ROWS], delimiter="\t"),
    "excel.xlsx": book(numbers),
    "title-and-place.xlsx": book(shifted),
    "named-xlsx.csv": book(numbers),
    "libreoffice.ods": ods(),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_rows_whoever_saved_them(run, name):
    path = run.home / name
    path.write_bytes(SAME[name])
    told = run.told("import", path, out="data")
    said = "|".join(m["content"].strip() for row in run.rows("data") for m in row["messages"])
    assert said == SAID and "0 rejected" in told
    encodings = {"german-windows": "Windows-1252", "old-mac": "MacRoman", "mac": "MacRoman"}
    if found := encodings.get(path.stem):
        assert f"{name} is read as {found} (--encoding names another)" in told
    assert ("title above the header" in told) == name.startswith(("numbers", "title"))


LABELS = [
    ("I cannot find my card anywhere, what now?", "lost_card"),
    ("My card has not arrived yet, when will it?", "card_arrival"),
    ("Somebody took my card from my bag", "lost_card"),
]
TURNED = [(*row[::-1], "2024-05-01") for row in LABELS]
JSONS = [(n, said, f'{{"label": "{label}"}}') for n, (said, label) in enumerate(LABELS, 1)]


@pytest.mark.parametrize(
    ("name", "data", "columns"),
    [
        ("bank.csv", text(LABELS, ("text", "category")), ["text", "category"]),
        ("bank.tsv", text(TURNED, ("category", "Frage", "date"), delimiter="\t"),
         ["Frage", "category"]),
        ("tickets.xlsx", book(lambda _: None, [("ID", "Ticket text", "Label (JSON)"), *JSONS]),
         ["Ticket text", "Label (JSON)"]),
    ],
)  # fmt: skip
def test_columns_of_any_name_are_offered_as_the_command_to_type(run, name, data, columns):
    path = run.home / name
    path.write_bytes(data)
    told = run.told("import", path, out="data", code=3)
    offered = next(line for line in told.splitlines() if line.startswith("by its looks"))
    argv = shlex.split(offered.partition(": mlx-itune data ")[2])
    assert argv[:2] == ["import", str(path)] and told.count(f"{path}:") == 1
    assert argv[4:] == ["--map", f"instruction={columns[0]}", "--map", f"output={columns[1]}"]
    run.told(*argv[:2], *argv[4:], out="data")
    rows = [tuple(m["content"] for m in row["messages"]) for row in run.rows("data")]
    assert rows == ([row[1:] for row in JSONS] if name == "tickets.xlsx" else LABELS)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("table.numbers", None, "in Numbers, File > Export To > CSV or Excel"),
        ("page.xls", b"<html><table><tr><td>question</td></tr></table></html>", "save it as CSV"),
        ("broken.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1 and no more", "save it as XLSX or CSV"),
    ],
)
def test_what_is_no_table_says_what_to_do(run, name, data, said):
    path = run.home / name
    if data is None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("Index/Document.iwa", "x")
    else:
        path.write_bytes(data)
    assert said in run.told("check", path, code=3)


def test_merged_cells_and_what_numbers_and_dates_are(run):
    def merged(sheet: Any) -> None:
        sheet.merge_cells("A2:A3")

    import datetime

    when = datetime.datetime(2024, 12, 31)
    rows = [
        HEADER,
        ("Which?", 0.1 + 0.2),
        (None, when),
        ("When?", when.replace(hour=8)),
        ("Really?", True),
    ]
    path = run.home / "merged.xlsx"
    path.write_bytes(book(merged, rows))
    run("import", path, out="data")
    assert [[m["content"] for m in row["messages"]] for row in run.rows("data")] == [
        ["Which?", "0.3"],
        ["Which?", "2024-12-31"],
        ["When?", "2024-12-31 08:00:00"],
        ["Really?", "true"],
    ]


def test_an_encoding_that_is_named_wins(run):
    path = run.home / "rows.csv"
    path.write_bytes(text([("Čo?", "Šťava")], encoding="cp1250"))
    run("import", path, "--encoding", "cp1250", out="data")
    assert [m["content"] for m in run.rows("data")[0]["messages"]] == ["Čo?", "Šťava"]
    assert "for instance utf-8" in run.told("check", path, "--encoding", "nothing", code=2)
    rows = Path(run.write("rows.jsonl", [{"question": "Größe?", "answer": "groß"}]))
    rows.write_bytes(rows.read_text().encode("utf-16"))
    assert run("check", rows)["accepted"] == 1
    rows.write_bytes(rows.read_bytes()[:-1])
    assert run("check", rows, code=3)["faults"][-1]["code"] == "encoding"
