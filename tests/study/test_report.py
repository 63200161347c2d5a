import io
import re
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pytest
from markupsafe import escape
from rich.console import Console

from ensemw2s.config.study import StudyConfig
from ensemw2s.evaluation.plots import render
from ensemw2s.evaluation.themes import LIGHT
from ensemw2s.evaluation.wording import NBSP
from ensemw2s.study import plots, report, tables, tables_variants
from ensemw2s.study.records import Diagnosis, MeanDifference, StudyResults, VariantDifference
from ensemw2s.study.rows import SCHEMA
from ensemw2s.study.sheet import Sheet, without_empty
from ensemw2s.study.summary import summarise

from .conftest import EXACT, frame_of, rows_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    rows = [r for task in ("a", "<b>") for seed in (0, 1, 2) for r in rows_of(task, seed)]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    study = StudyConfig(name="s", base={}, resamples=1000)
    return folder, report.write(study, table, {"a, default, seed 3": "no <room>"}, ["a, default, seed 3"], folder)


def test_the_page_has_every_table_and_plot_and_loads_nothing(written) -> None:
    folder, summary = written
    page = (folder / "study.html").read_text(encoding="utf-8")
    for sheet in tables.sheets(summary):
        assert f"<h2>{escape(sheet.title)}</h2>" in page
    assert page.count("<figure>") == len(plots.PLOTS) == len(list((folder / "plots").glob("*.png")))
    assert not re.findall(r"""(?:src|srcset|href)=["'](?!data:)""", page)
    assert "no &lt;room&gt;" in page
    assert "<b>" not in page
    assert StudyResults.read(folder / "study.json") == summary


def test_the_terminal_says_what_held_and_what_failed_within_80_columns(written) -> None:
    _, summary = written
    console = Console(file=io.StringIO(), width=80)
    report.print_summary(summary, console)
    shown = console.file.getvalue()
    assert "What held" in shown
    assert "…" not in shown, "nothing is cut off"
    assert max(map(len, shown.splitlines())) <= 80
    assert "a, default, seed 3 failed: no <room>" in shown


@pytest.mark.parametrize("hard", [False, True])
def test_the_terminal_shows_the_same_columns_with_hard_validation_and_without(frame, hard) -> None:
    more = frame[frame["split"] == "validation"].assign(split="hard_validation", exact_match=0.111)
    summary = summarise(pd.concat([frame, more]) if hard else frame, resamples=1000)
    console = Console(file=io.StringIO(), width=200)
    report.print_summary(SimpleNamespace(**dict(summary), failed={}), console)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["ID", "OOD"] in lines
    assert next(line for line in lines if line[:1] == ["Bagging"]) == [
        "Bagging",
        *["49.0", "(46.5–51.5)", "39.0", "(36.5–41.5)"],
    ]
    both = ["validation", "p", "hard", "validation", "p"]
    assert ["Variant", "−", "default", *(both if hard else both[:2])] in lines


def test_variants_against_each_other_are_a_table_of_their_own(summary) -> None:
    [entry] = summary.variants
    pair = entry.model_copy(update={"variant": "third", "against": "better"})
    shown = summary.model_copy(update={"pairs": (pair,)})
    assert tables_variants.pairs(shown).rows[0][:2] == ("third − better", "+2.0 (+2.0 to +2.0)")
    titles = [sheet.title for sheet in tables.sheets(shown)]
    assert titles.index("Variants against each other") > titles.index("Variants")
    assert "Variants against each other" not in [sheet.title for sheet in tables.sheets(summary)]


def test_a_variant_of_some_tasks_says_which(frame) -> None:
    some = frame[(frame["variant"] != "better") | (frame["task"] == "b")]
    summary = summarise(some, resamples=1000)
    assert tables_variants.variants(summary).rows[0][0] == "better (b)"
    assert [row[0] for row in tables_variants.rivals(summary).rows] == ["default", "better (b)"]


def test_what_did_not_hold_is_said_as_loudly(frame) -> None:
    swapped = frame.replace({"system": {"ensemw2s": "bagging", "bagging": "ensemw2s"}})
    said = tables.verdicts(summarise(swapped, resamples=1000))
    assert any("EnsemW2S ensemble minus bagging on ID: −3.0" in text for text in said["What turned out the other way"])
    single = tables.verdicts(summarise(frame_of(rows_of("a", 0)), resamples=1000))
    claims = [pair for pair in tables.CLAIMS if set(pair) <= EXACT.keys()]
    assert len(single["What cannot be told"]) == 2 * len(claims)
    assert "one seed" in single["What cannot be told"][0]


def test_the_variant_that_validation_speaks_for_is_named(summary) -> None:
    def difference(mean: float, low: float, high: float, verdict: str) -> MeanDifference:
        counts = {"n": 3, "pairs": 3, "p": 0.25, "smallest_p": 0.25, "exact": True}
        return MeanDifference(mean=mean, ci95=(low, high), verdict=verdict, **counts)

    def entry(variant: str, weak: MeanDifference, student: MeanDifference) -> VariantDifference:
        places = {("ensemw2s", "validation"): weak, ("student_ensemw2s", "hard_validation"): student}
        return VariantDifference(variant=variant, differences=places)

    better, worse = difference(0.02, 0.01, 0.03, "better"), difference(-0.1, -0.2, -0.05, "worse")
    nothing = difference(0, 0, 0, "no difference")
    entries = (entry("one", better, worse), entry("two", nothing, nothing))
    note = tables_variants.variants(summary.model_copy(update={"variants": entries})).note
    assert (
        "ensemble, validation: one does best, +2.0 (+1.0 to +3.0), p = 0.25; the interval is above 0 for one;" in note
    )
    assert "0.1 of the 1 intervals on easy validation" in note, "the second differs in nothing"
    assert note.endswith("none beats the default; the interval is above 0 for none; the interval is below 0 for one.")


def test_two_seeds_have_no_interval() -> None:
    """Two that agree by chance would have a narrow one."""
    two = summarise(frame_of([r for seed in (0, 1) for r in rows_of("a", seed)]), resamples=1000)
    row = next(row for row in tables.comparisons(two, "a").rows if row[0].endswith("− Bagging"))
    assert row[1] == "+2.5 (2 seeds)"
    assert "over 2 seeds" in tables.systems(two, "a").note
    one = summarise(frame_of(rows_of("a", 0)), resamples=1000)
    assert "over 1 seed with" in tables.systems(one, "a").note


def test_variants_stand_beside_their_own_rivals(summary) -> None:
    """The variant's ensemble is two points better, its bagging is not."""
    sheet = tables_variants.rivals(summary)
    own = {row[0]: row for row in sheet.rows}
    assert sheet.headings[2] == "− bagging, ID"
    assert own["default"][1:3] == (f"1{NBSP}M", "+3.0 (+0.5 to +5.5)")
    assert own["better"][2] == "+5.0 (+2.5 to +7.5)"
    assert own["better"][6] == "+7.0 (+4.5 to +9.5)"


def test_columns_and_tables_without_a_figure_are_left_out() -> None:
    sheet = Sheet("k", "T", ("", "a", "b"), (("x", "–", "1"), ("y", "–", "–")))
    assert without_empty(sheet).headings == ("", "b")
    kept = [r for r in rows_of("a", 0) if r["system"] in ("ensemw2s", "bagging")]
    shown = {sheet.key: sheet for sheet in tables.sheets(summarise(frame_of(kept), resamples=1000))}
    assert "pgr" not in shown
    assert "ID gain" not in shown["costs"].headings, "there are no weak bases as they are"


def test_the_labels_of_a_student_stand_beside_it(summary) -> None:
    sheet = tables.systems(summary, "a")
    right = {row[0]: row[sheet.headings.index("labels right")] for row in sheet.rows}
    assert (right["Student of EnsemW2S"], right["Student of bagging"]) == ("50.0", "–")
    assert sheet.note.endswith("Labels right, %, are those that a student learnt from.")
    assert "OOD options" not in next(s for s in tables.sheets(summary) if s.key == "systems").headings
    weak = summarise(frame_of([r for r in rows_of("a", 0) if r["system"] == "bagging"]), resamples=1000)
    assert "Labels" not in tables.systems(weak, "a").note


def test_curves_are_told_round_by_round(summary) -> None:
    assert ("a", "ID", "57.0", "62.0") in tables.curves(summary).rows


def test_a_study_of_one_seed_has_a_report_too(tmp_path) -> None:
    table = pa.Table.from_pylist(rows_of("a", 0), schema=SCHEMA)
    summary = report.write(StudyConfig(name="s", base={}), table, {}, ["one"] * 4, tmp_path)
    assert (summary.finished, summary.cells) == (1, 5)
    assert ("cells", "1 of 5 (without one; one; one; one)") in report.facts(summary)
    assert (tmp_path / "study.html").exists()


def test_a_study_of_weak_systems_alone_has_a_report_too(tmp_path) -> None:
    kept = [r for r in rows_of("a", 0) if not r["system"].startswith(("student_", "base_", "sequence_"))]
    kept = [{k: v for k, v in r.items() if k not in ("error_correlation", "member_exact_match")} for r in kept]
    table = pa.Table.from_pylist(kept, schema=SCHEMA)
    summary = report.write(StudyConfig(name="s", base={}), table, {}, [], tmp_path)
    assert (summary.pgr, summary.diagnosis.points) == ((), ())
    assert "Student" not in (tmp_path / "study.html").read_text(encoding="utf-8").split("<main>")[1].split("Beside")[0]


def test_a_tables_figures_are_those_of_the_statistics(summary) -> None:
    sheet = tables.comparisons(summary, "all")
    row = next(row for row in sheet.rows if row[0] == "EnsemW2S ensemble − Bagging")
    assert row == ("EnsemW2S ensemble − Bagging", "+3.0 (+0.5 to +5.5)", "0.031", "+3.0 (+0.5 to +5.5)", "0.031")
    assert "6 pairs" in sheet.note
    assert "cannot be less than 0.031" in sheet.note


def test_variants_with_other_examples_have_a_table_of_their_own(frame) -> None:
    of_one_task = frame[(frame["variant"] != "better") | (frame["task"] == "b")]
    summary = summarise(of_one_task, resamples=1000, other_data={"better"})
    keys = [sheet.key for sheet in tables.sheets(summary)]
    assert "variants" not in keys
    assert keys.count("others") == 1
    rows = {row[1]: row for row in tables_variants.others(summary).rows}
    ours, bagging, student = (rows[name] for name in ("EnsemW2S ensemble", "Bagging", "Student of bagging"))
    assert ours[0] == "better (b)"
    assert ours[3].startswith("44.0 (")
    assert ours[5:] == ("–",) * 4
    assert bagging[5].startswith("+5.0 (")
    assert student[5] == "+2.0 (+2.0 to +2.0)"
    of_all = tables_variants.others(summarise(frame, resamples=1000, other_data={"better"}))
    assert {row[0] for row in of_all.rows} == {"better"}


def test_a_study_knows_which_variants_have_other_examples(tmp_path) -> None:
    rows = [r for name in ("default", "split", "more") for r in rows_of("a", 0, name)]
    study = StudyConfig(
        name="s", base={}, variants={"split": {"data.split.mode": "random"}}, factors={"boosting.rounds": [2]}
    )
    summary = report.write(study, pa.Table.from_pylist(rows, schema=SCHEMA), {}, [], tmp_path)
    assert [entry.variant for entry in summary.other_data] == ["split"]
    assert [entry.variant for entry in summary.variants] == ["more"]


def test_pgr_is_shown_by_its_median_and_range(summary) -> None:
    [row] = [row for row in tables.recovered(summary, "all").rows if row[1] == "OOD"]
    assert row[:5] == ("Student of EnsemW2S", "OOD", "0.30", "0.30 to 0.30", "2 of 6")


def test_a_table_becomes_markdown_with_its_cells_escaped() -> None:
    sheet = Sheet("k", "T", ("", "x"), (("a|b", "1"),), "Note.")
    assert report.markdown(sheet).splitlines() == ["|  | x |", "|---|---:|", "| a\\|b | 1 |", "", "Note."]


def test_plots_are_left_out_where_there_is_nothing_to_draw(summary) -> None:
    assert set(render(summary, LIGHT, plots.PLOTS)) == set(plots.PLOTS)
    parts = {"diagnosis": Diagnosis(points=(), associations=()), "curves": (), "comparisons": ()}
    nothing = summary.model_copy(update=parts)
    assert set(render(nothing, LIGHT, plots.PLOTS)) == {"costs"}
