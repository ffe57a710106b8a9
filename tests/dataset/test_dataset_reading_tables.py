"""CSV, TSV, Parquet and XLSX: columns, quotes, lines, and the tables that people really have."""

import datetime
import decimal
import sys
import zipfile

import openpyxl
import pytest

from mlx_itune.dataset.conversation import Conversation, Fault
from mlx_itune.dataset.how import Reading
from mlx_itune.dataset.reading import Record
from mlx_itune.dataset.sources import read_rows
from mlx_itune.kit.errors import DataError, UsageError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def values(found):
    return [(*r.value.values(),) if isinstance(r, Record) else (r.code, r.line) for r in found]


def said(found):
    return [c.code if isinstance(c, Fault) else [t.content for t in c.turns] for c in found]


HEADER = "question,answer\n"


@pytest.mark.parametrize("delimiter", ",;\t|")
def test_the_delimiter_of_a_csv_is_found(read, delimiter):
    rows = [("question", "answer"), ("a, b; c|d?", "e"), ("f", "g,h")]
    lines = [delimiter.join(f'"{cell}"' for cell in row) for row in rows]
    assert values(read("a.csv", "\n".join(lines))) == rows[1:]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ('"a\nb ""c""",d\r\n\r\n"e,f",g\nh', [('a\nb "c"', "d"), ("e,f", "g"), ("columns", 6)]),
        ("a,b\nc\nd,e,f\ng,h", [("a", "b"), ("columns", 3), ("columns", 4), ("g", "h")]),
        ('a,"b\nc,d\ne,f', [("csv", 2), ("c", "d"), ("e", "f")]),
        ('a,"b"x\nc,d', [("csv", 2), ("c", "d")]),
        ('"a\n\nb,c"\nd,e', [("columns", 2), ("d", "e")]),
        ("a,b\rc,d\ne,f", [("csv", 2), ("e", "f")]),
        ("a,\x00b\nc,d", [("nul", 2), ("c", "d")]),
        (b"a,\xffb\nc,d", [("utf-8", 2), ("c", "d")]),
        ('é?,"a\nö"\nwo?,da\nwer?,Müller\n'.encode() + b"\xfc,\xf6\n",
         [("é?", "a\nö"), ("wo?", "da"), ("wer?", "Müller"), ("utf-8", 6)]),
        ("", []),
    ],
)  # fmt: skip
def test_a_broken_row_spoils_no_other(read, rows, expected):
    rows = rows if isinstance(rows, bytes) else rows.encode()
    assert values(read("a.csv", HEADER.encode() + rows)) == expected


def test_a_cell_that_swallows_the_file_is_one_fault(read, monkeypatch):
    monkeypatch.setattr("mlx_itune.dataset.reading.stream.MAX_ROW_BYTES", 2000)
    found = read("a.csv", HEADER + 'a,"b\n' + "c,d\n" * 3000)
    assert values(found) == [("row-size", 2), *[("c", "d")] * 3000]
    found = read("a.tsv", HEADER.replace(",", "\t") + "x" * 3000 + "\ty\nc\td\n")
    assert values(found) == [("row-size", 2), ("c", "d")]


def test_headers_as_programs_write_them(read):
    assert read("a.csv", "\ufeffquestion,a\nb,c\n")[0].value == {"question": "b", "a": "c"}
    assert read("a.csv", ",question\n0,a\n")[0].value == {"1": "0", "question": "a"}
    assert read("a.csv", ",question,\n,a,\n")[0].value == {"question": "a"}
    (twice,) = read("a.csv", "answer,answer\na,b\n")
    assert twice.code == "header" and "'answer'" in twice.message
    # Without the names of its columns there is no row.
    (fault,) = read("a.csv", b"frage;antw\xffrt\nwas?;a\n")
    assert fault.code == "utf-8" and "names of the columns" in fault.message


def test_a_tsv_without_a_header_is_told_by_its_looks(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('Is it "blue"?\tno\t"Blue" is a colour.\nWhy?\tyes\t"so"\n')
    first, second = read_rows(path)
    assert said([first, second]) == [['Is it "blue"?', "no"], ["Why?", "yes"]]
    assert first.tags == {"rationale": '"Blue" is a colour.'} and second.tags == {"rationale": "so"}
    mapped = read_rows(path, how=Reading(columns={"instruction": "3", "output": "2"}))
    assert said(mapped) == [['"Blue" is a colour.', "no"], ["so", "yes"]]
    path.write_text("a thing that is said\t7\nanother, again\t8\n")
    faults = list(read_rows(path))
    assert said(faults) == ["unknown-format"] * 2
    assert "--map question=1 --map answer=2" in faults[0].hint
    assert len(list(read_rows(path, how=Reading(columns={"question": "1", "answer": "2"})))) == 2


def write_parquet(path, columns, **options):
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def test_parquet_columns_become_text_and_nested_ones_stay(tmp_path):
    turns = [("user", "u", None), ("assistant", "a", 0.5)]
    messages = [dict(zip(("role", "content", "weight"), turn, strict=True)) for turn in turns]
    path = write_parquet(
        tmp_path / "a.parquet",
        {
            "messages": [messages, None],
            "question": [None, "q"],
            "answer": [None, "42"],
            "n": [1, None],
            "x": [1.5, float("nan")],
            "flag": [True, False],
            "when": [datetime.date(2024, 5, 1), None],
            "price": [decimal.Decimal("1.10"), None],
        },
    )
    first, second = read_rows(path)
    assert first.turns[1].weight == 0.5 and first.origin == f"{path}:2"
    texts = {"n": "1", "x": "1.5", "flag": "true", "when": "2024-05-01", "price": "1.10"}
    assert first.tags == texts and second.tags == {"flag": "false"}
    assert said([second]) == [["q", "42"]]


PADDED = {"city": {"type": None}, "a": {"type": "number", "enum": [1, None]}}


def test_nulls_that_a_union_of_objects_put_into_a_table_are_not_what_its_rows_say(tmp_path):
    def turns(name, **given):
        call = {"function": {"name": name, "arguments": {**given, "said": None}}}
        return [{"role": "user", "content": "u"}, {"role": "assistant", "tool_calls": [call]}]

    def tool(name, **properties):
        return [{"function": {"name": name, "parameters": {"properties": properties}}}]

    rows = [
        {"messages": turns("f", city="Rome"), "tools": tool("f", city={"type": "string"})},
        {"messages": turns("g", a=1), "tools": tool("g", a={"type": "number", "enum": [1, None]})},
    ]
    # As some writers pad.
    padded = [rows[0], {**rows[1], "tools": tool("g", **PADDED)}]
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(padded), path)
    one, other = read_rows(path)
    calls = [row.turns[1].tool_calls[0]["function"]["arguments"] for row in (one, other)]
    assert calls == [{"city": "Rome", "said": None}, {"a": 1, "said": None}]
    assert [row.tools for row in (one, other)] == [tuple(row["tools"]) for row in rows]


def test_parquet_is_read_in_batches_and_its_damage_told(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet",
        {k: [f"{k} {n} " * 20 for n in range(20_000)] for k in ("question", "answer")},
        row_group_size=5000,
        use_dictionary=False,
    )
    told = []
    found = list(read_rows(path, on_bytes=told.append))
    assert len(found) == 20_000 and isinstance(found[-1], Conversation)
    assert sum(told) == path.stat().st_size and len(told) > 5
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 2000] = b"\xff" * 2000
    path.write_bytes(data)
    found = list(read_rows(path))
    assert found[-1].code == "parquet" and "rows cannot be read" in found[-1].message


def test_strange_text_in_parquet_is_a_fault_of_its_row(tmp_path):
    binary = pyarrow.array([b"a", b"\xff", b"c\x00", b"d"])
    path = write_parquet(tmp_path / "a.parquet", {"question": ["q"] * 4, "answer": binary})
    assert [getattr(r, "code", "row") for r in read_rows(path)] == ["row", "utf-8", "nul", "row"]


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", {"question": ["q"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="pip install pyarrow"):
        list(read_rows(path))


def workbook(path, sheets):
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


def test_every_sheet_of_a_workbook_is_read(tmp_path):
    header = ["question", "answer", "n", "when"]
    when = datetime.datetime(2024, 5, 1, 12)
    one = [header, ["q", 7, 1.5, when], [None] * 4, ["p", "=1+1"], ["a", "b", "c", "d", "e"]]
    two = [["instruction", "output"], ["i", True]]
    path = workbook(tmp_path / "a.xlsx", {"one": one, "two": two})
    first, formula, wide, other = read_rows(path)
    assert said([first, other]) == [["q", "7"], ["i", "true"]]
    assert first.tags == {"n": "1.5", "when": "2024-05-01 12:00:00", "sheet": "one"}
    assert (formula.code, formula.line) == ("empty", 4), "a formula that nobody computed is empty"
    assert (wide.code, wide.line) == ("columns", 5)
    assert other.origin == f"{path}:2" and other.tags == {"sheet": "two"}


def test_a_cell_far_out_is_refused_and_one_that_is_no_date_is_told(tmp_path, read):
    late = datetime.timedelta(hours=30)
    rows = [["question", "answer"], ["q", late], ["q", "a"]]
    path = workbook(tmp_path / "a.xlsx", {"one": rows})
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "b.xlsx", "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part.replace(b"<v>1.25</v>", b"<v>1e300</v>"))
    assert values(read("b.xlsx", (tmp_path / "b.xlsx").read_bytes())) == [("xlsx", 2), ("q", "a")]
    book = openpyxl.load_workbook(path)
    book["one"]["XFD1048576"] = "x"
    book.save(path)
    with pytest.raises(DataError, match="16,384 columns and 1,048,576 rows"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.xlsx", "PK\x03\x04 and no more", "no readable spreadsheet"),
        ("a.xlsx", HEADER, "is not a xlsx file"),
        ("a.parquet", "PAR1 and no more", "no readable Parquet"),
        ("a.parquet", HEADER, "is not a parquet file"),
    ],
)
def test_what_only_has_the_name_is_refused(read, name, data, reason):
    with pytest.raises(DataError, match=reason):
        read(name, data)
