import bz2
import csv
import gzip
import itertools
import json
import random
import re
from importlib.metadata import version

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemw2s.config import Columns, FilesSource, HuggingFaceSource, ReasoningGymSource
from ensemw2s.data.columns import render_row
from ensemw2s.data.readers import FilesReader, HuggingFaceReader, ReasoningGymReader
from ensemw2s.errors import DataError

ROWS = [{"prompt": "1+1", "answer": "2"}, {"prompt": "2+2", "answer": "4"}, {"prompt": "é\n", "answer": "007"}]


def write(path, rows=ROWS):
    """Writes rows in the format that the path's ending names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(*paths):
    return [row for _, row in FilesReader(FilesSource(paths=[str(path) for path in paths])).rows()]


# files


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.ndjson", "a.json", "a.csv"])
def test_every_format_gives_the_same_rows(tmp_path, name):
    assert read(write(tmp_path / name)) == ROWS


def test_json_lines_are_read_under_the_name_json_too(tmp_path):
    path = write(tmp_path / "a.jsonl")
    assert read(path.rename(tmp_path / "a.json")) == ROWS


@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress)])
def test_text_files_may_be_compressed(tmp_path, ending, pack):
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(pack(write(tmp_path / "plain.jsonl").read_bytes()))
    assert read(path) == ROWS


def test_text_keeps_its_spelling(tmp_path):
    rows = [{"a": "007", "b": "1.50", "c": "2024-01-01", "d": "true", "e": "NA", "f": ""}]
    assert read(write(tmp_path / "a.csv", rows)) == rows
    assert read(write(tmp_path / "a.jsonl", rows)) == rows


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfprompt,answer\n1,2\n")
    assert read(path) == [{"prompt": "1", "answer": "2"}]


def test_a_uri_is_read_like_a_path(tmp_path):
    assert read(f"file://{write(tmp_path / 'a.parquet')}") == ROWS


def test_a_relative_path_is_relative_to_where_one_is(tmp_path, monkeypatch):
    write(tmp_path / "data" / "a.csv")
    monkeypatch.chdir(tmp_path)
    assert read("data/a.csv") == ROWS


def test_a_folder_is_read_by_name_without_hidden_and_foreign_files(tmp_path):
    write(tmp_path / "d" / "b.jsonl", [{"prompt": "second", "answer": "1"}])
    write(tmp_path / "d" / "a" / "z.csv", [{"prompt": "first", "answer": "1"}])
    write(tmp_path / "d" / ".cache" / "x.jsonl")
    write(tmp_path / "d" / "_tmp.jsonl")
    (tmp_path / "d" / "README.md").write_text("no data")
    assert [row["prompt"] for row in read(tmp_path / "d")] == ["first", "second"]


def test_a_row_says_where_it_is_from(tmp_path):
    path = write(tmp_path / "a.jsonl")
    origins = [origin for origin, _ in FilesReader(FilesSource(paths=[str(path)])).rows()]
    assert origins == [f"{path} row {i}" for i in (1, 2, 3)]


def test_a_sample_looks_into_every_file(tmp_path):
    paths = [str(write(tmp_path / name)) for name in ("a.jsonl", "b.csv")]
    assert len(list(FilesReader(FilesSource(paths=paths)).sample())) == 2


def test_a_path_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"data path .*nowhere.csv does not exist"):
        read(tmp_path / "nowhere.csv")


def test_a_folder_without_data_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"holds no file ending in .parquet, .jsonl"):
        read(tmp_path)


def test_an_unknown_ending_is_an_error(tmp_path):
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(DataError, match=r"a.xlsx has an unknown ending; expected one of .parquet"):
        read(tmp_path / "a.xlsx")


def test_an_unknown_kind_of_uri_is_an_error():
    with pytest.raises(DataError, match=r"data path foo://x/y.csv cannot be read: Unrecognized filesystem"):
        read("foo://x/y.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": "1"}\n{"prompt": \n', "line 2 is not JSON"),
        ("a.jsonl", b"[1, 2]\n", "row 1 is a list, expected an object"),
        ("a.json", b'[{"prompt": 1}', "cannot be read as json"),
        ("a.csv", b"prompt,answer\n1\n", r"row 1 \(line 2\) does not have 2 cells"),
        ("a.csv", b"prompt,answer\n1,2,3\n", r"row 1 \(line 2\) does not have 2 cells"),
        ("a.csv", b"prompt,prompt\n1,2\n", "names a column twice"),
        ("a.csv", b"prompt,answer\n\xff,2\n", "cannot be read as csv: row 1 \\(line 2\\) is not UTF-8 \\(byte 0xFF\\)"),
        ("a.parquet", b"not parquet", "cannot be read as parquet"),
        ("a.jsonl.gz", b"not gzip", "cannot be read as jsonl"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"data file .*{name}.*{message}"):
        read(tmp_path / name)


def test_the_identity_of_files_changes_with_their_content(tmp_path):
    path = write(tmp_path / "a.csv")
    reader = FilesReader(FilesSource(paths=[str(path)]))
    before = reader.identity()
    assert before["files"][0]["size"] == path.stat().st_size
    assert reader.identity() == before
    path.write_bytes(path.read_bytes().replace(b"007", b"008"))
    assert reader.identity() != before


# reasoning_gym


def gym(dataset="number_sorting", **easy):
    return ReasoningGymReader(ReasoningGymSource(dataset=dataset, easy=easy, hard={"min_numbers": 5}))


def take(reader, n, part="easy", seed=0):
    return [row for _, row in itertools.islice(reader.rows(part, seed), n)]


def test_the_stream_does_not_end_with_a_chunk_and_repeats_by_seed():
    reader = gym()
    reader.chunk, reader.block = 20, 8
    rows = take(reader, 50)
    assert rows == take(reader, 50)
    assert rows[:10] == take(reader, 10)
    assert len({row["question"] for row in rows}) == 50
    assert set(rows[0]) == {"question", "answer", "metadata"}


def test_seeds_and_parts_give_other_rows():
    streams = [take(gym(), 20), take(gym(), 20, seed=1), take(gym(), 20, part="hard")]
    questions = [{row["question"] for row in rows} for rows in streams]
    assert not questions[0] & questions[1]
    assert not questions[0] & questions[2]


def test_each_part_has_its_own_settings():
    assert {row["metadata"]["numbers"] for row in take(gym(min_numbers=3, max_numbers=3), 20)} == {3}
    assert min(row["metadata"]["numbers"] for row in take(gym(), 50, part="hard")) >= 5


def test_data_sets_that_draw_from_the_global_generator_repeat_and_leave_it_alone():
    random.seed(1)
    state = random.getstate()
    first = take(gym("list_functions"), 60)
    assert random.getstate() == state
    random.seed(2)
    assert take(gym("list_functions"), 60) == first


def test_composite_takes_its_parts_from_plain_values():
    parts = [{"name": name, "weight": 1, "config": {}} for name in ("chain_sum", "leg_counting")]
    rows = take(gym("composite", datasets=parts), 30)
    assert len({row["metadata"]["source_dataset"] for row in rows}) == 2


def test_an_unknown_data_set_is_answered_with_the_nearest_names():
    with pytest.raises(DataError, match="number_sort is not a reasoning_gym data set; nearest names: number_sorting"):
        take(gym("number_sort"), 1)


def test_an_unknown_setting_is_answered_with_the_valid_ones():
    with pytest.raises(
        DataError, match=r"easy.min_number: .* did you mean min_numbers\? Valid: max_decimals, max_numb"
    ):
        take(gym(min_number=3), 1)


def test_settings_that_the_data_set_refuses_are_an_error_with_its_reason():
    with pytest.raises(DataError, match=r"easy config .* is refused: max_numbers must be >= min_numbers"):
        take(gym(min_numbers=5, max_numbers=3), 1)


@pytest.mark.parametrize("key", ["seed", "size"])
def test_seed_and_size_are_not_set_in_the_source(key):
    with pytest.raises(DataError, match=rf"easy.{key} .*: set `seed` and `data.sizes` instead"):
        take(gym(**{key: 3}), 1)


def test_a_data_set_that_depends_on_hash_order_is_warned_of(monkeypatch, caplog):
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    list(gym("word_ladder").sample("easy"))
    assert "word_ladder gives other rows in each process unless PYTHONHASHSEED is set" in caplog.text


def test_the_identity_of_a_generator_is_its_version():
    assert gym().identity() == {
        "kind": "reasoning_gym",
        "dataset": "number_sorting",
        "version": version("reasoning-gym"),
    }


# huggingface


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return datasets


def hub(path, **fields):
    return HuggingFaceReader(HuggingFaceSource(path=str(path), **fields))


def test_a_data_set_saved_to_disk_is_read(tmp_path, datasets):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert [row for _, row in hub(tmp_path / "saved").rows()] == ROWS


def test_splits_of_a_saved_data_set_are_picked_and_joined(tmp_path, datasets):
    parts = {"train": datasets.Dataset.from_list(ROWS[:1]), "test": datasets.Dataset.from_list(ROWS[1:])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert [row for _, row in hub(tmp_path / "saved", split="test").rows()] == ROWS[1:]
    assert [row for _, row in hub(tmp_path / "saved", split="train+test").rows()] == ROWS
    with pytest.raises(DataError, match="has no split dev; it has: train, test"):
        list(hub(tmp_path / "saved", split="dev").rows())


def test_a_folder_of_data_files_is_read(tmp_path, datasets):
    write(tmp_path / "folder" / "train.jsonl")
    write(tmp_path / "folder" / "test.jsonl", ROWS[:1])
    assert [row for _, row in hub(tmp_path / "folder").rows()] == ROWS
    assert [row for _, row in hub(tmp_path / "folder", split="test").rows()] == ROWS[:1]


def test_a_folder_that_is_no_data_set_is_an_error(tmp_path, datasets):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"folder .* cannot be loaded: .*; it must be a folder saved by save_to_disk"):
        list(hub(tmp_path / "folder").rows())


def test_a_hub_that_cannot_be_reached_is_one_clear_error(datasets, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"hub data set no-one/nothing \(split train\) cannot be loaded: .* give the folder"
    ):
        list(hub("no-one/nothing").rows())


def test_the_identity_of_a_local_data_set_changes_with_its_content(tmp_path, datasets):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    before = hub(tmp_path / "one").identity()
    assert before["files"][0]["sha256"]
    datasets.Dataset.from_list(ROWS[:2]).save_to_disk(tmp_path / "one")
    assert hub(tmp_path / "one").identity() != before


def test_files_in_object_storage_are_read_like_local_ones(bucket, tmp_path):
    for name in ("a.jsonl", "b.csv", "c.parquet", "c/_hidden.jsonl"):
        file = write(tmp_path / name)
        bucket.client.upload_file(str(file), bucket.name, f"prompts/{name}")
    reader = FilesReader(FilesSource(paths=[f"s3://{bucket.name}/prompts"]))
    assert [row for _, row in reader.rows()] == ROWS * 3
    before = reader.identity()
    assert {file["path"] for file in before["files"]} == {
        f"{bucket.name}/prompts/{n}" for n in ("a.jsonl", "b.csv", "c.parquet")
    }
    bucket.client.put_object(Bucket=bucket.name, Key="prompts/a.jsonl", Body=b'{"prompt": "1", "answer": "1"}\n')
    assert reader.identity() != before
    with pytest.raises(DataError, match=rf"s3://{bucket.name}/nothing does not exist"):
        read(f"s3://{bucket.name}/nothing")


def test_numbers_of_json_keep_their_spelling(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x", "answer": 42.0}\n{"prompt": "y", "answer": 1e3}\n{"prompt": "z", "answer": 7}\n')
    columns = Columns(prompt="prompt", answer="answer")
    assert [render_row(columns, row)["answer"] for row in read(path)] == ["42.0", "1e3", "7"]


def put_aside(path, text):
    """The rows of a file with broken ones among them, and what is said of these."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    errors = []
    rows = list(FilesReader(FilesSource(paths=[str(path)]), errors.append).rows())
    return [row["p"] for _, row in rows], [str(error) for error in errors]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"p": ' + b"1" * 5000 + b"}", "line 2 has an integer of over 4300 digits: put it in quotes"),
        (b'{"p": ' + b"[" * 200_000 + b"}", "line 2 is nested too deeply"),
        (b'{"p": "caf\xe9"}', r"line 2 is not UTF-8 (byte 0xE9); it looks like Windows-1252: convert the file with"),
        (b'{"p": ', "line 2 is not JSON"),
        (b"[1]", "row 2 is a list"),
    ],
)
def test_a_broken_line_of_json_is_put_aside_with_its_number(tmp_path, line, reason):
    rows, errors = put_aside(tmp_path / "a.jsonl", b'{"p": "a"}\n' + line + b'\n{"p": "b"}\n')
    assert rows == ["a", "b"]
    assert len(errors) == 1
    assert reason in errors[0]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'"He said "hi" to me",x', "row 2 (line 3) is not CSV: ',' expected after"),
        (b"caf\xe9,x", "row 2 (line 3) is not UTF-8 (byte 0xE9)"),
        (b"a,b,c", "row 2 (line 3) does not have 2 cells as the header does, but 3"),
    ],
)
def test_a_broken_row_of_csv_is_put_aside_with_its_line(tmp_path, line, reason):
    rows, errors = put_aside(tmp_path / "a.csv", b"p,note\na,x\n" + line + b"\nb,x\n")
    assert rows == ["a", "b"]
    assert len(errors) == 1
    assert reason in errors[0]


def test_a_quote_that_never_ends_hides_the_rest_so_the_file_is_refused_with_the_line(tmp_path):
    with pytest.raises(DataError, match=r"row 2 begins in line 3 and does not end before line 5 .*quote missing"):
        put_aside(tmp_path / "a.csv", 'p,note\na,x\n"b,x\nc,x\nd,x\n')


def test_a_file_of_another_encoding_is_named(tmp_path):
    text = '{"p": "a"}\n'
    with pytest.raises(DataError, match="it is UTF-16, expected UTF-8; convert the file with iconv -f UTF-16 -t UTF-8"):
        put_aside(tmp_path / "a.jsonl", text.encode("utf-16"))
    _, [error] = put_aside(
        tmp_path / "b.jsonl",
        '{"p": "次の数字を小さい順に並べてください。答えは数字だけを書いてください。"}\n'.encode("shift_jis"),
    )
    assert re.search(r"looks like (cp932|shift_jis)", error)


@pytest.mark.parametrize("mark", [";", "\t"])
def test_another_separator_is_guessed(tmp_path, mark):
    with pytest.raises(DataError, match=r"its header is a single column, .* seems to be separated by"):
        put_aside(tmp_path / "a.csv", f"p{mark}note\na{mark}x\n")


def test_a_pattern_stands_for_the_files_that_match_it_in_order(tmp_path):
    for name in ("b.jsonl", "a.jsonl", "c.csv", "deep/d.jsonl"):
        write(tmp_path / "data" / name, [{"prompt": name, "answer": "1"}])
    assert [row["prompt"] for row in read(tmp_path / "data/*.jsonl")] == ["a.jsonl", "b.jsonl"]
    assert [row["prompt"] for row in read(tmp_path / "data/[ac].*")] == ["a.jsonl", "c.csv"]
    assert len(read(tmp_path / "data/**/*.jsonl")) == 3
    assert [row["prompt"] for row in read(f"file://{tmp_path}/data/?.jsonl")] == ["a.jsonl", "b.jsonl"]
    assert len(read(f"file://{tmp_path}/data/**/*.jsonl")) == 3


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path):
    write(tmp_path / "a[1].jsonl")
    assert read(tmp_path / "a[1].jsonl") == ROWS


def test_a_pattern_without_files_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"none\*.jsonl: no file has such a name"):
        read(tmp_path / "none*.jsonl")
