"""The studies on data sets of the hub, with stand-ins that have the hub's columns, saved as `datasets` saves them."""

from pathlib import Path
from typing import Any

import pytest

from ensemw2s.config import load_config
from ensemw2s.config.study import load_study
from ensemw2s.data.answers import answer_key
from ensemw2s.data.sources import read_source
from ensemw2s.data.splits import make_splits
from ensemw2s.study.cells import Cell, expand

ROOT = Path(__file__).parents[2]
COUNT = 40

SIZES = "{easy_train: 8, easy_validation: 4, id_test: 6, hard_unlabelled: 6, ood_test: 4}"


def sciq(i: int) -> dict[str, Any]:
    wrong = {f"distractor{k}": f"gas {k}" for k in (3, 1, 2)}
    return {"question": f"What is {i}?", **wrong, "correct_answer": f"water {i}", "support": "It is wet."}


def options(texts: list[str], labels: str) -> dict[str, list[str]]:
    return {"text": texts, "label": list(labels)}


def arc(i: int) -> dict[str, Any]:
    numbered = i % 2 == 0  # some questions of ARC are numbered
    choices = options(["ice", "steam", f"rain {i}", "fog"], "1234" if numbered else "ABCD")
    return {
        "id": f"Mercury_{i}",
        "question": f"Which falls, {i}?",
        "choices": choices,
        "answerKey": "3" if numbered else "C",
    }


def harder(i: int) -> dict[str, Any]:
    return arc(i) | {"question": f"Why does it fall, {i}?"}


def quartz(i: int) -> dict[str, Any]:
    return {
        "id": f"QRQA-{i}",
        "question": f"If it is {i} degrees warmer, ice melts",
        "choices": options(["faster", "slower"], "AB"),
        "answerKey": "A",
        "para": f"Ice melts faster when it is {i} degrees warmer.",
        "para_id": f"QRSent-{i}",
        "para_anno": {"effect_prop": "melt", "cause_dir_sign": "MORE"},
        "question_anno": {"more_effect_dir": "faster"},
    }


def gsm8k(i: int) -> dict[str, Any]:
    steps = "".join(f"{i} + 1 = <<{i}+1={i + 1}>>{i + 1}\n" for _ in range(2 + 3 * (i % 2)))
    return {"question": f"Ann has {i} pens and gets one. How many?", "answer": f"{steps}#### {1000 + i:,}"}


def openbookqa(i: int) -> dict[str, Any]:
    choices = options(["rain", "fur", "ice", "snow"], "ABCD")
    return {"id": f"7-{i}", "question_stem": f"What keeps {i} warm?", "choices": choices, "answerKey": "B"}


SETS = {"sciq": [sciq], "arc": [arc, harder], "quartz": [quartz], "gsm8k": [gsm8k]}

HUB = {"sciq": (6839, 6839), "arc": (5197, 2590), "quartz": (1932, 1932), "gsm8k": (5615, 3177)}
"""Easy and hard rows of the real data sets, all their splits together: 13 679 and 3864 by the median, ARC as it is,
and of GSM8K those with at most three and with more steps."""

EXPECTED = {
    "sciq": ("What is 1?", "water 1", ["gas 1", "gas 2", "gas 3", "water 1"]),
    "arc": ("Which falls, 1?", "rain 1", ["fog", "ice", "rain 1", "steam"]),
    "quartz": (
        "Ice melts faster when it is 1 degrees warmer.\nIf it is 1 degrees warmer, ice melts",
        "faster",
        ["faster", "slower"],
    ),
    "openbookqa": ("What keeps 1 warm?", "fur", ["fur", "ice", "rain", "snow"]),
    "gsm8k": ("Ann has 1 pens and gets one. How many?", "1,001", None),
}
"""Question, answer and sorted options of the second row."""


def asked(row: dict[str, Any]) -> tuple[str, str, list[str] | None]:
    """The same of an example, whose options are lines of its prompt."""
    if row["choices"] is None:
        return row["prompt"], row["answer"], None
    question, *listed = row["prompt"].split("\n- ")
    assert listed == row["choices"]
    return question, row["answer"], sorted(listed)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each data set, with the splits that it has on the hub."""
    import datasets

    place = tmp_path_factory.mktemp("sets")
    for name, makers in {**SETS, "openbookqa": [openbookqa]}.items():
        splits = ("train", "test") if name == "gsm8k" else ("train", "validation", "test")
        for maker in makers:
            rows = [maker(i) for i in range(COUNT * len(splits))]
            parts = {
                split: datasets.Dataset.from_list(rows[k * COUNT : (k + 1) * COUNT]) for k, split in enumerate(splits)
            }
            datasets.DatasetDict(parts).save_to_disk(place / maker.__name__)
    return place


def cells(study: str, saved: Path) -> dict[str, Cell]:
    """The study's cells of one seed on the stand-ins, by task."""
    sources = {
        "sciq": "base.data.source.path",
        **{k: f"tasks.{k}.data.source.path" for k in ("arc", "quartz", "gsm8k")},
    }
    overrides = [f"{key}={saved / name}" for name, key in sources.items()]
    overrides += [f"tasks.arc.data.hard_source.path={saved / 'harder'}", "seeds=[0]"]
    # no task has more rows here than there are; all but sciq have sizes of their own
    overrides += [f"base.data.sizes={SIZES}", *(f"tasks.{task}.data.sizes={SIZES}" for task in SETS if task != "sciq")]
    found = expand(load_study(ROOT / "ensemw2s" / "recipes" / "studies" / f"{study}.yaml", overrides))
    return {cell.task: cell for cell in found if cell.variant == "default"}


@pytest.mark.parametrize("study", ["pythia", "qwen", "llama"])
def test_no_task_wants_more_rows_than_the_hub_has(study: str) -> None:
    for cell in expand(load_study(ROOT / "ensemw2s" / "recipes" / "studies" / f"{study}.yaml", ["seeds=[0]"])):
        sizes, (easy, hard) = cell.config.data.sizes, HUB[cell.task]
        assert sizes.easy_train + sizes.easy_validation + sizes.id_test <= easy
        assert sizes.hard_unlabelled + sizes.ood_test + sizes.hard_validation <= hard


@pytest.mark.parametrize("study", ["pythia", "qwen", "llama"])
@pytest.mark.parametrize("task", SETS)
def test_rows_of_the_hubs_columns_become_questions_with_answers(study: str, task: str, saved: Path) -> None:
    config = cells(study, saved)[task].config.data
    table = read_source(config.source, seed=0, n_easy=0, n_hard=0)
    assert table.num_rows == COUNT * (2 if task == "gsm8k" else 3)
    row = table.to_pylist()[1]
    assert asked(row) == EXPECTED[task]
    splits = make_splits(config, seed=0, reference=lambda rated: [float(i) for i in range(rated.num_rows)])
    assert splits.easy_train.num_rows == 8
    if task == "gsm8k":
        assert set(splits.easy_train["difficulty"].to_pylist()) == {2.0}
        assert set(splits.ood_test["difficulty"].to_pylist()) == {5.0}
    if task == "arc":
        assert all(text.startswith("Why") for text in splits.ood_test["prompt"].to_pylist())


@pytest.mark.parametrize("recipe", ["real", "arc", "openbookqa", "quartz", "gsm8k"])
def test_recipes_of_runs_read_the_hubs_columns(recipe: str, saved: Path) -> None:
    task = "sciq" if recipe == "real" else recipe
    overrides = [f"data.source.path={saved / task}", f"data.sizes={SIZES}"]
    if recipe == "arc":
        overrides.append(f"data.hard_source.path={saved / 'harder'}")
    config = load_config(recipe, overrides).data
    row = read_source(config.source, seed=0, n_easy=0, n_hard=0).to_pylist()[1]
    if recipe == "gsm8k":
        assert row["answer"].endswith("#### 1,001")
        assert answer_key(config.answer_match)(row["answer"]) == 1001
    else:
        assert asked(row) == EXPECTED[task]
    splits = make_splits(config, seed=0, reference=lambda rated: [float(i) for i in range(rated.num_rows)])
    assert splits.easy_train.num_rows == 8
