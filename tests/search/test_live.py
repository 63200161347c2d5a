"""Numbers of trials: those of the order in which they were drawn, whatever order Tune has them in."""

import io
from types import SimpleNamespace

from rich.console import Console

from ensemw2s.search.live import numbered, table, trial_folder


def trial(number: int, name: str) -> SimpleNamespace:
    return SimpleNamespace(
        experiment_tag=f"{number + 1}_epochs=6,lr=0.1",
        trial_id=name,
        status="RUNNING",
        last_result={},
        config={"x": name},
    )


def result(number: int, name: str) -> SimpleNamespace:
    return SimpleNamespace(path=f"/storage/tune/{trial_folder(trial(number, name))}", name=name)


def test_a_trial_keeps_its_number_where_a_restart_has_turned_the_order() -> None:
    found = numbered([result(2, "c"), result(0, "a"), result(11, "l")])
    assert {number: result.name for number, result in found.items()} == {0: "a", 2: "c", 11: "l"}
    assert list(found) == [0, 2, 11]


def test_folders_without_a_number_count_in_the_order_of_tune() -> None:
    plain = [SimpleNamespace(path="/storage/tune/b1c2d3e4", name="x"), result(0, "y")]
    assert [result.name for result in numbered(plain).values()] == ["x", "y"]


def test_the_table_has_trials_by_their_numbers() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table([trial(2, "c"), trial(0, "a")]))
    lines = console.export_text().splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["0", "2"]
    assert lines[0].rstrip().endswith("x a")
