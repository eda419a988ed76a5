"""Bad files end in one sentence that says what, where and what to do; good ones are read whole."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.readers import list_files, messages_of, read_rows, read_text
from launch.errors import UserError


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def values(path):
    return [row.values for row in read_rows(path)]


BAD = {
    "empty.jsonl": (b"", ["empty.jsonl", "the file is empty"]),
    "blank.jsonl": (b" \n\n", ["blank.jsonl", "the file is empty"]),
    "mark.csv": (b"\xef\xbb\xbf", ["mark.csv", "the file is empty"]),
    "mark.txt.jsonl": ("\ufeff\n\u00a0\n".encode(), ["the file is empty"]),
    "deep.jsonl": (b'{"text": "a"}\n' + b"[" * 100_000, ["deep.jsonl: line 2", "brackets nest too deep"]),
    "deep.json": (b"[" * 100_000, ["deep.json", "brackets nest too deep"]),
    "digits.jsonl": (b'{"text": ' + b"1" * 6000 + b"}", ["line 1", "thousands of digits"]),
    "digits.json": (b'[{"text": ' + b"1" * 6000 + b"}]", ["digits.json", "thousands of digits"]),
    "binary.jsonl": (b"\x89PNG\r\n\x1a\n\x00\x00", ["binary.jsonl", "binary file", "offset 8"]),
    "latin.jsonl": ('{"text": "a"}\n{"text": "caf\xe9"}\n'.encode("latin1"), ["line 2", "0xE9", "offset 27", "iconv"]),
    "utf16.jsonl": ('{"text": "a"}'.encode("utf-16"), ["UTF-16", "iconv"]),
    "cut.jsonl": (b'{"text": "a"}\n\n{"text": "b', ["line 3", "the line is cut", "restore"]),
    "cut2.jsonl": (b'{"text": "a"}\n{"text": "b"', ["line 2", "the line is cut"]),
    "notjson.jsonl": (b'{"text": "a"}\ntext: b\n', ["line 2", "not JSON", "column 1"]),
    "list.jsonl": (b"[1, 2]\n", ["line 1", "a list", "give an object"]),
    "cut.json": (b'[{"text": "a"},\n {"text":', ["cut.json: line 2", "not JSON"]),
    "scalar.json": (b"3", ["a number", "JSON list of objects"]),
    "none.json": (b"[]", ["no rows"]),
    "twice.csv": (b"text,label,text\na,1,b\n", ["'text' is given twice", "rename"]),
    "unnamed.csv": (b"text,,label\na,1,b\n", ["heading 2 is empty"]),
    "ragged.csv": (b'text,label\n"a\nb",1\nc,d,e\n', ["line 4", "3 fields under 2"]),
    "quote.csv": (b'text,label\n"a,1\nb,2\n', ["not CSV"]),
    "header.csv": (b"text,label\n", ["no rows"]),
    "fake.parquet": (b"this is not parquet at all", ["fake.parquet", "not readable as Parquet"]),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 99)[:-12], ["not a whole gzip file"]),
    "fake.jsonl.gz": (b'{"text": "a"}\n', ["not a whole gzip file"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_one_sentence(tmp_path, name):
    content, wanted = BAD[name]
    with pytest.raises(UserError) as error:
        read_rows(write(tmp_path, name, content))
    message = str(error.value)
    assert message.startswith(str(tmp_path / name)) and "\n" not in message
    for part in wanted:
        assert part in message


def test_cut_parquet(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a", "b"] * 100}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="not readable as Parquet"):
        read_rows(path)


def test_missing_file_names_the_nearest(tmp_path):
    write(tmp_path, "train.jsonl", "{}")
    with pytest.raises(UserError, match=r"trian\.jsonl: no such file or folder; did you mean 'train\.jsonl'\?"):
        list_files(tmp_path / "trian.jsonl")
    with pytest.raises(UserError, match=f"the folder {tmp_path}/none does not exist either"):
        list_files(tmp_path / "none" / "train.jsonl")


def test_missing_file_lists_few_names(tmp_path):
    for number in range(40):
        write(tmp_path, f"part-{number:03}.jsonl", "{}")
    with pytest.raises(UserError) as error:
        list_files(tmp_path / "zzz")
    assert str(error.value).count("part-") == 8


def test_folder_takes_data_files_in_name_order(tmp_path):
    for name in ("b.jsonl", "a.csv.gz", "README.md", ".hidden.jsonl", "sub/c.txt", ".git/d.txt", "_cache/e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path, name, "x")
    assert [p.relative_to(tmp_path).as_posix() for p in list_files(tmp_path)] == ["a.csv.gz", "b.jsonl", "sub/c.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no data file"):
        list_files(tmp_path / "empty")


ROWS = [{"text": "one"}, {"text": 'two\n"quoted"\u2028\u0085, é'}]


@pytest.mark.parametrize(
    "name", ["r.jsonl", "r.json", "lines.json", "r.csv", "r.tsv", "r.parquet", "r.jsonl.gz", "r.csv.gz"]
)
def test_every_format_gives_the_same_rows(tmp_path, name):
    """U+2028 and U+0085 are line ends to str.splitlines, not to JSON."""
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    table = "text{0}\n" + "\n".join('"' + row["text"].replace('"', '""') + '"{1}' for row in ROWS)
    contents = {".jsonl": lines, ".json": json.dumps(ROWS) if name == "r.json" else lines}
    contents |= {".csv": table.format("", ""), ".tsv": table.format("", "")}
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        data = contents["." + name.removesuffix(".gz").rsplit(".", 1)[1]].encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert values(path) == ROWS


def test_rows_know_their_line(tmp_path):
    path = write(tmp_path, "r.jsonl", '{"a": 1}\n\n{"a": 2}\n')
    assert [row.where for row in read_rows(path)] == [f"{path}: line 1", f"{path}: line 3"]


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    assert read_text(write(tmp_path, "w.txt", b"\xef\xbb\xbfone\r\ntwo\r\n")) == "one\ntwo\n"
    assert values(write(tmp_path, "w.csv", b"\xef\xbb\xbftext\r\none\r\n")) == [{"text": "one"}]


def test_text_where_rows_are_needed(tmp_path):
    with pytest.raises(UserError, match="rows are needed here, not text"):
        read_rows(write(tmp_path, "a.txt", "hello"))


def test_reading_is_linear(tmp_path):
    """20 times the rows must not take 400 times as long: counted in line reads through a time ratio."""
    import time

    def seconds(rows):
        path = write(tmp_path, f"{rows}.jsonl", "\n".join(['{"text": "some words in a row"}'] * rows))
        start = time.perf_counter()
        read_rows(path)
        return time.perf_counter() - start

    seconds(2_000)
    assert seconds(100_000) < 200 * max(seconds(5_000), 0.005)


def test_messages_are_checked():
    good = [{"role": "user", "content": "Hi", "id": 3}, {"from": "gpt", "value": "Yes"}]
    assert messages_of(good, "x") == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]
    with pytest.raises(UserError, match=r"x, message 2 has no 'role'; did you mean 'rol'\?"):
        messages_of([good[0], {"rol": "user", "content": "a"}], "x")
    with pytest.raises(UserError, match="x, message 1: content is nothing"):
        messages_of([{"role": "user", "content": None}], "x")
    with pytest.raises(UserError, match="x, message 1 is a text"):
        messages_of(["hello"], "x")
    with pytest.raises(UserError, match="x, message 1: from is a list"):
        messages_of([{"from": ["human"], "value": "a"}], "x")
    with pytest.raises(UserError, match="x is a list; give a list such as"):
        messages_of([], "x")
