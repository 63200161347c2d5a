import json
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from ensemw2s.errors import ArtifactError, ResourceError
from ensemw2s.storage import store
from ensemw2s.storage.store import MARKER, Description, Stage

DESCRIPTION = Description(stage="rounds/1", settings={"expert.epochs": 6}, inputs={"tokens": "abc"})

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


class KilledError(BaseException):
    """Stands for whatever ends a process inside a block, Ctrl-C among it."""


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "run" / "rounds" / "1"


def publish(path: Path, description: Description = DESCRIPTION, **files: str) -> None:
    with store.publish(path, description) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)


def publish_in_vain(path: Path, error: BaseException) -> None:
    with store.publish(path, DESCRIPTION) as folder:
        (folder / "facts").write_text("new")
        raise error


def content(path: Path) -> dict[str, str]:
    return {p.relative_to(path).as_posix(): p.read_text() for p in sorted(path.rglob("*")) if p.is_file()}


def test_a_published_folder_is_done_and_holds_what_was_written(path):
    assert not store.is_done(path, DESCRIPTION)
    publish(path, facts="1")
    assert store.is_done(path, DESCRIPTION)
    assert content(path).keys() == {"facts", MARKER}
    assert json.loads((path / MARKER).read_text()) == DESCRIPTION.model_dump()
    assert [p.name for p in path.parent.iterdir()] == ["1"]


def test_nothing_is_in_place_while_the_block_runs(path):
    with store.publish(path, DESCRIPTION) as folder:
        (folder / "facts").write_text("1")
        assert not path.exists()


@pytest.mark.parametrize("error", [ValueError("x"), KilledError(), OSError(5, "Input/output error")])
def test_an_error_inside_the_block_leaves_nothing_and_is_passed_on(path, error):
    with pytest.raises(type(error)):
        publish_in_vain(path, error)
    assert list(path.parent.iterdir()) == []
    assert not store.is_done(path, DESCRIPTION)


def test_an_error_inside_the_block_leaves_the_folder_that_was_there_as_it_was(path):
    publish(path, facts="old")
    before = content(path)
    with pytest.raises(KilledError):
        publish_in_vain(path, KilledError())
    assert content(path) == before


@pytest.mark.parametrize("where", ["before the marker", "before the folder is put in place"])
def test_a_kill_on_the_way_leaves_nothing_that_counts_as_done(path, monkeypatch, where):
    def die(*_):
        raise KilledError

    def do_not_clean_up(*_, **__):
        pass

    monkeypatch.setattr(store, "write_json" if where == "before the marker" else "_put_in_place", die)
    monkeypatch.setattr(store.shutil, "rmtree", do_not_clean_up)  # SIGKILL leaves no time for it
    with pytest.raises(KilledError):
        publish(path, facts="half")
    monkeypatch.undo()
    [leftover] = path.parent.iterdir()
    assert leftover.name.startswith(".partial-1-")
    assert not store.is_done(path, DESCRIPTION)
    publish(path, facts="whole")
    assert content(path)["facts"] == "whole"
    assert [p.name for p in path.parent.iterdir()] == ["1"]


def test_a_kill_between_two_files_of_a_folder_that_was_there_leaves_no_marker(path, monkeypatch):
    """A round's folder holds its experts already, so its own files are moved in one by one."""
    publish(path / "experts" / "0", Description(stage="rounds/1/experts/0"), weights="w")
    real, moved = os.replace, []

    def replace(source, target):
        if Path(target).parent == path:
            if len(moved) == 1:
                raise KilledError
            moved.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KilledError):
        publish(path, errors="e", facts="f")
    monkeypatch.undo()
    assert len(moved) == 1
    assert not store.is_done(path, DESCRIPTION)
    assert store.is_done(path / "experts" / "0", Description(stage="rounds/1/experts/0"))
    publish(path, errors="e", facts="f")
    assert store.is_done(path, DESCRIPTION)


def test_a_redone_stage_has_no_marker_until_all_its_files_are_new(path, monkeypatch):
    publish(path, facts="old")
    real, seen = os.replace, []

    def replace(source, target):
        if Path(target).parent == path:
            seen.append((Path(target).name, (path / MARKER).exists()))
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    publish(path, facts="new", more="x")
    assert sorted(seen[:2]) == [("facts", False), ("more", False)]
    assert seen[2] == (MARKER, False)


def test_folders_of_other_stages_inside_stay(path):
    publish(path / "experts" / "0", Description(stage="rounds/1/experts/0"), weights="w")
    publish(path, facts="1")
    assert content(path).keys() == {"facts", MARKER, "experts/0/weights", f"experts/0/{MARKER}"}
    assert store.is_done(path, DESCRIPTION)


def test_a_folder_of_the_stage_itself_is_replaced_whole(path):
    for name in ("one", "two"):
        with store.publish(path, DESCRIPTION) as folder:
            (folder / "tokenizer").mkdir()
            (folder / "tokenizer" / name).write_text("x")
    assert content(path).keys() == {"tokenizer/two", MARKER}


def test_leftovers_of_a_neighbour_with_a_longer_name_are_not_mine(path):
    """`experts/0-retry` may be in the making beside `experts/0`."""
    neighbour = path.parent / ".partial-1-retry-0123abcd"
    mine = path.parent / ".partial-1-0123abcd"
    for folder in (neighbour, mine):
        folder.mkdir(parents=True)
    publish(path, facts="1")
    assert neighbour.exists()
    assert not mine.exists()


def full_parquet(folder: Path) -> None:
    (folder / "table.parquet").symlink_to("/dev/full")
    pq.write_table(pa.table({"a": list(range(10_000))}), folder / "table.parquet")


def full_text(folder: Path) -> None:
    (folder / "text").symlink_to("/dev/full")
    (folder / "text").write_text("x" * 100_000)


def full_weights(folder: Path) -> None:
    """What safetensors raises: an error of its own without a number."""
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")
@pytest.mark.parametrize("write", [full_parquet, full_text, full_weights])
def test_a_full_disk_says_what_to_do_and_leaves_nothing(path, write):
    with (
        pytest.raises(ResourceError, match=r"no space left for .*rounds/1: free some, then run the same command again"),
        store.publish(path, DESCRIPTION) as folder,
    ):
        write(folder)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("number", [28, 122], ids=["full", "quota"])
def test_a_disk_that_is_full_only_at_the_marker_is_full_too(path, monkeypatch, number):
    def fsync(handle):
        raise OSError(number, os.strerror(number))

    publish(path, facts="old")
    before = content(path)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ResourceError, match="no space left"):
        publish(path, facts="new")
    assert content(path) == before
    with pytest.raises(OSError, match=os.strerror(number)):
        store.write_json(path.parent / "manifest.json", {})
    assert [p.name for p in path.parent.iterdir()] == ["1"]


def test_another_description_is_refused_with_what_was_and_what_is(path):
    publish(path)
    wanted = DESCRIPTION.model_copy(update={"settings": {"expert.epochs": 9, "expert.lora": {"rank": 8}}})
    with pytest.raises(ArtifactError) as caught:
        store.is_done(path, wanted)
    message = str(caught.value)
    assert f"{path} was made with another config: " in message
    assert "expert.epochs was 6, is 9; expert.lora.rank was None, is 8. Use another name for this run, or --fresh" in (
        message
    )


def test_nested_settings_are_named_by_their_dotted_key():
    found, wanted = (
        Description(stage="data", settings={"data.sizes": {"easy_train": n, "id_test": 5}}) for n in (10, 20)
    )
    assert store.difference(found, wanted) == "data.sizes.easy_train was 10, is 20"


def test_inputs_are_named_only_where_no_setting_changed():
    other = DESCRIPTION.model_copy(update={"inputs": {"tokens": "xyz"}})
    assert store.difference(DESCRIPTION, other) == "its inputs changed (tokens)"
    both = other.model_copy(update={"settings": {"expert.epochs": 7}})
    assert store.difference(DESCRIPTION, both) == "expert.epochs was 6, is 7"


def test_many_changes_are_counted():
    found, wanted = (Description(stage="data", settings={f"k{i}": value for i in range(7)}) for value in (0, 1))
    assert re.fullmatch(r"(k\d was 0, is 1(; )?){4} and 3 more", store.difference(found, wanted))


@pytest.mark.parametrize("text", ["", "{", '{"a": 1', "[]", '{"a": 1}'])
def test_a_damaged_marker_is_named(path, text):
    path.mkdir(parents=True)
    (path / MARKER).write_text(text)
    with pytest.raises(ArtifactError, match=r"\.complete\.json is damaged .*: delete .*rounds/1 to redo it"):
        store.is_done(path, DESCRIPTION)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(), PLAIN, max_size=4))
def test_a_plain_description_equals_itself_after_json(settings):
    description = Description(stage="a", settings=settings)
    assert Description.model_validate(json.loads(json.dumps(description.model_dump()))) == description
    turned = dict(reversed(settings.items()))
    assert store.fingerprint_of(turned) == store.fingerprint_of(settings)


def test_a_fingerprint_follows_from_settings_inputs_and_name_and_not_from_the_place():
    def made(name: str = "a", place: str = "x", value: int = 1, before: int = 1) -> str:
        first = Stage("first", Path("f"), {"s": before})
        return Stage(name, Path(place), {"k": value}, (first,)).fingerprint

    assert made() == made(place="y")
    assert len({made(), made(name="b"), made(value=2), made(before=2)}) == 4


def test_resume_keeps_the_parts_of_the_same_description(path):
    store.resume(path, DESCRIPTION)
    (path / "part-0").write_text("x")
    store.resume(path, DESCRIPTION)
    assert (path / "part-0").read_text() == "x"
    assert not store.is_done(path, DESCRIPTION)
    store.finish(path, DESCRIPTION)
    assert store.is_done(path, DESCRIPTION)
    assert content(path).keys() == {"part-0", MARKER}


def test_resume_removes_the_parts_of_another_description(path):
    store.resume(path, DESCRIPTION)
    (path / "part-0").write_text("x")
    store.resume(path, DESCRIPTION.model_copy(update={"inputs": {"tokens": "xyz"}}))
    assert content(path).keys() == {".started.json"}


@pytest.mark.parametrize("started", [None, "{", "[1]"])
def test_resume_removes_parts_of_which_it_cannot_say_whose_they_are(path, started):
    path.mkdir(parents=True)
    (path / "part-0").write_text("x")
    if started is not None:
        (path / ".started.json").write_text(started)
    store.resume(path, DESCRIPTION)
    assert content(path).keys() == {".started.json"}


def test_json_is_written_whole_or_not_at_all(tmp_path):
    file = tmp_path / "facts.json"
    store.write_json(file, {"ä": [1, 2.5, None]})
    assert store.read_json(file) == {"ä": [1, 2.5, None]}
    assert "ä" in file.read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        store.write_json(file, {"a": object()})
    assert store.read_json(file) == {"ä": [1, 2.5, None]}
    assert [p.name for p in tmp_path.iterdir()] == ["facts.json"]


def test_unreadable_json_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"absent\.json cannot be read"):
        store.read_json(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"bad\.json cannot be read"):
        store.read_json(tmp_path / "bad.json")


def test_the_marker_of_an_older_run_is_read_and_written_as_it_was(tmp_path):
    older = Path(__file__).parents[1] / "older_run/rounds/1/experts/0" / MARKER
    description = Description.read(older)
    assert description.stage == "rounds/1/experts/0"
    description.write(tmp_path / MARKER)
    assert (tmp_path / MARKER).read_text() == older.read_text()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_published_files_follow_the_umask_whoever_wrote_them(path, umask, mode):
    before = os.umask(umask)
    try:
        with store.publish(path, DESCRIPTION) as folder:
            (folder / "experts").mkdir()
            for file in (folder / "weights", folder / "experts" / "weights"):
                file.write_text("w")
                file.chmod(0o600)  # as safetensors does
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (path / "weights", path / "experts" / "weights")} == {mode}
