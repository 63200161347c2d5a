"""The page and the table of a full run, of a minimal one, and of one whose strings are hostile."""

import base64
import copy
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from rich.console import Console

from ensemw2s.config.systems import SYSTEMS_BEFORE as SYSTEMS
from ensemw2s.config.systems import TABLE
from ensemw2s.evaluation import page as pages
from ensemw2s.evaluation import plots
from ensemw2s.evaluation import report as reports
from ensemw2s.evaluation.plots import wilson
from ensemw2s.evaluation.records import RunResults
from ensemw2s.evaluation.themes import DARK, LIGHT, Theme
from ensemw2s.evaluation.wording import NBSP

PLOTS = ("systems", "rounds", "alpha", "weights", "agreement")
PNG = b"\x89PNG\r\n\x1a\n"
VOID = {"meta", "link", "source", "img", "br", "line"}


class Page(HTMLParser):
    """Elements, visible text and attributes of a page; fails where elements are not closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.tags if name in attrs]


def page(results: dict[str, Any], light: dict[str, bytes], dark: dict[str, bytes]) -> str:
    return pages.page(RunResults.model_validate(results), light, dark)


def write_report(results: dict[str, Any], folder: Path) -> Path:
    return reports.write_report(RunResults.model_validate(results), folder)


def print_table(results: dict[str, Any], console: Console) -> None:
    reports.print_table(RunResults.model_validate(results), console)


def render(results: dict[str, Any], theme: Theme) -> dict[str, bytes]:
    return plots.render(RunResults.model_validate(results), theme, plots.PLOTS)


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", Page(html).text.replace(NBSP, " "))


def table_of(results: dict[str, Any]) -> str:
    out = io.StringIO()
    print_table(results, Console(file=out, width=80))
    return out.getvalue().replace(NBSP, " ")


@pytest.fixture(scope="module")
def run(full_once, tmp_path_factory) -> Path:
    """A run's folder with the report of the full run."""
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    assert write_report(full_once, folder) == folder / "report.html"
    return folder


@pytest.fixture
def html(run) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
class TestFullReport:
    def test_writes_the_page_and_every_plot_and_leaves_nothing_half_written(self, run):
        files = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
        assert files == {"report.html", *(f"plots/{name}.png" for name in PLOTS)}
        assert all((run / "plots" / f"{name}.png").read_bytes().startswith(PNG) for name in PLOTS)

    def test_is_one_file_that_loads_nothing(self, html):
        found = Page(html)
        assert not {"script", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in found.tags}
        loads = [url for name in ("src", "srcset", "href", "action", "poster") for url in found.attributes(name)]
        assert all(url.startswith("data:") for url in loads)
        assert "://" not in html
        assert "@import" not in html
        assert "url(" not in html
        assert "default-src 'none'" in html

    def test_embeds_every_plot_for_light_and_for_dark(self, html, run):
        found = Page(html)
        light = [base64.b64decode(src.split(",")[1]) for src in found.attributes("src")]
        dark = [base64.b64decode(src.split(",")[1]) for src in found.attributes("srcset")]
        assert len(light) == len(dark) == len(PLOTS)
        assert all(png.startswith(PNG) for png in light + dark)
        assert sorted(light) == sorted((run / "plots" / f"{name}.png").read_bytes() for name in PLOTS)
        assert not set(light) & set(dark)
        assert all(found.attributes("alt"))

    @pytest.mark.slow
    def test_is_the_same_bytes_for_the_same_results(self, full, html, run, tmp_path):
        again = write_report(full, tmp_path)
        assert again.read_text(encoding="utf-8") == html
        for name in PLOTS:
            assert (tmp_path / f"plots/{name}.png").read_bytes() == (run / f"plots/{name}.png").read_bytes()

    def test_has_every_system_with_its_figures_and_cost(self, full, html):
        text = text_of(html)
        for name in SYSTEMS:
            assert name in text
            assert TABLE[name].label in text
            for split in ("id", "ood"):
                figures = full["systems"][name][split]
                lo, hi = figures["ci95"]
                assert f"{100 * figures['exact_match']:.1f}{100 * lo:.1f}–{100 * hi:.1f}" in text.replace(" ", "")
        assert "370 k" in text
        assert "n = 1000" in text

    def test_an_expert_has_the_name_that_votes_and_ensembles_have_for_it(self, full, html):
        assert full["rounds"][1]["experts"][0]["name"] == "rounds/2/experts/0"
        assert '<td class="l">round-2-expert-0</td>' in html
        assert "rounds/2/experts/0" not in html

    def test_says_what_the_task_is_with_an_example_of_each_kind(self, html):
        text = " ".join(Page(html).text.split())
        assert "The examples come from mine.jsonl. An example is easy if its level is at most 2, else hard." in text
        assert "ID (in distribution) means 1000 easy examples" in text
        assert "<td>sort 2 1 =</td><td>1 2</td>" in html
        assert "<td>sort 3 2 1 =</td><td>1 2 3</td>" in html

    def test_says_plainly_where_the_ensemble_does_not_win(self, html):
        text = text_of(html)
        assert "Of 10 comparisons, the ensemble wins 6, is no different in 3 and loses 1." in text
        assert "It does not win against bagging of as many experts: no difference on ID" in text
        assert "It does not win against the weak bases as they are: worse on OOD" in text
        assert "It wins against one expert on ID" in text

    def test_has_pgr_with_plain_differences_the_paper_and_the_provenance(self, full, html):
        text = text_of(html)
        assert f"{full['pgr']['student_ensemw2s']['ood']['value']:.2f}" in text
        for expected in (
            "up to +6",
            "+2.28",
            "2410.04571",
            "2505.21959",
            "3f6c0e1b9a52",
            "2.13.0",
            "deepspeed",
            "1 min 32 s",
        ):
            assert expected in text

    def test_every_token_is_shaded_numbered_and_explained(self, full, html):
        found = Page(html)
        tokens = [attrs for tag, attrs in found.tags if tag == "span" and "title" in attrs]
        assert len(tokens) == sum(len(e["tokens"]) for e in full["examples"])
        assert len([tag for tag, attrs in found.tags if tag == "article"]) == 20
        first = full["examples"][0]["tokens"][1]
        title = tokens[1]["title"]
        assert title.startswith(f"agreement {first['agreement']:.2f}\n")
        assert "✗ weak-0 (α 2.90): " in title
        assert "✓ weak-4 (α 2.10): " in title
        assert tokens[1]["style"] == f"--share: {round(100 * first['agreement'])}"
        assert text_of(html).count("✗ wrong") == 7
        assert text_of(html).count("✓ right") == 13


class TestHostileAndAwkwardData:
    def test_every_string_is_escaped(self, full):
        evil = "<script>alert('x')</script>\"'><img src=http://evil.example/x.png onerror=alert(1)>{{ 7*7 }}"

        def poison(node):
            if isinstance(node, dict):
                return {key: poison(value) for key, value in node.items()}
            if isinstance(node, list):
                return [poison(value) for value in node]
            return evil if isinstance(node, str) and node not in ("id", "ood", *SYSTEMS) else node

        results = poison(full)
        results["systems"][evil] = results["systems"]["bagging"]
        results["labels"][evil] = {"n": 1, "accuracy": 1.0, "finish_reasons": {evil: 1}}
        results["versions"][evil] = evil
        clean, found = Page(page(full, {}, {})), Page(page(results, {}, {}))
        assert {tag for tag, _ in found.tags} == {tag for tag, _ in clean.tags}
        assert not found.attributes("src")
        assert not found.attributes("onerror")
        assert "{{ 7*7 }}" in found.text

    def test_markup_of_the_terminal_is_not_interpreted(self, full):
        full["systems"]["[red]odd[/red]"] = full["systems"]["bagging"]
        full["stages"][0]["name"] = "[bold]data[/]"
        printed = table_of(full)
        assert "[red]odd[/red]" in printed
        assert "[bold]data[/]" in printed

    def test_white_space_tokens_and_rounding_of_agreement_are_visible(self, minimal):
        tokens = [
            {"text": "\n", "agreement": 0.5, "votes": []},
            {"text": "  ", "agreement": 0.9999999, "votes": []},
            {"text": "", "agreement": None, "votes": None},
        ]
        minimal["examples"] = [
            {"id": "a", "prompt": "p", "truth": None, "answer": "x", "correct": None, "tokens": tokens}
        ]
        html = page(minimal, {}, {})
        shown = [attrs for tag, attrs in Page(html).tags if tag == "span" and "title" in attrs]
        assert [s["style"] for s in shown] == ["--share: 50", "--share: 100", "--share: 100"]
        assert [s["class"].strip() for s in shown] == ["token much", "token", "token"]
        for visible in ("↵", "␣", "∅", "? truth unknown"):
            assert visible in html

    def test_pgr_that_is_null_shows_its_reason_on_page_and_terminal(self, full):
        reason = "the ceiling (0.100) is not above the weak expert (0.144), so there is no gap to recover"
        full["pgr"]["student_ensemw2s"]["ood"].update(value=None, ci95=None, reason=reason)
        assert reason in text_of(page(full, {}, {}))
        printed = table_of(full)
        assert "null" in printed
        assert reason in " ".join(printed.split())

    def test_pgr_of_an_uncertain_gap_is_marked(self, full):
        full["pgr"]["student_single"]["id"]["ceiling_minus_weak"]["ci95"] = [-0.01, 0.02]
        assert "the ceiling may be no better than the weak expert" in text_of(page(full, {}, {}))

    def test_options_have_their_columns_only_where_there_are_options(self, full):
        assert "Options right" not in page(full, {}, {})
        full["systems"]["bagging"]["id"]["option_accuracy"] = 0.613
        text = text_of(page(full, {}, {}))
        assert "Options right" in text
        assert "61.3" in text

    def test_fitted_votes_have_their_temperatures_and_losses_only_where_there_are_any(self, full):
        assert "temperature" not in text_of(page(full, {}, {}))
        full["rounds"][0]["experts"][0]["temperature"] = 1.234
        full["fit"] = {
            "examples": {"fitted": 151, "held_out": 150},
            "nll": {"before": {"fitted": 0.5, "held_out": 0.6}, "after": {"fitted": 0.4, "held_out": 0.55}},
        }
        text = text_of(page(full, {}, {}))
        assert "1.234" in text
        assert "Votes fitted on validation" in text
        assert "0.5500" in text

    def test_the_curve_of_the_anchor_stands_there_where_it_was_searched_for(self, full):
        assert "Anchor" not in text_of(page(full, {}, {}))
        curve = [{"anchor": a, "accuracy": 0.8 + a / 10, "agreement": 0.9 - a / 5} for a in (0, 0.5, 1)]
        full["anchor"] = {"anchor": 0.5, "curve": curve, "easy": 300, "hard": 500, "bases_know": True}
        html = page(full, {}, {})
        text = text_of(html)
        assert '<tr class="ours"><th scope="row">0.5</th><td>85.0</td><td>80.0</td></tr>' in html
        assert "λ = 0.5 has the largest sum of both columns" in text
        full["anchor"] |= {"anchor": 1.0, "bases_know": False}
        assert "know too little to go back to" in text_of(page(full, {}, {}))

    def test_passes_show_the_ensemble_after_each_and_why_the_last_did_not_take_place(self, full):
        assert "Consensus passes" not in text_of(page(full, {}, {}))
        record = {"number": 1, "anchor": 0.5, "agreement": "token", "validation": 300, "accuracy": 0.9, "best": 0.98}
        record |= {"needed": 0.931, "threshold": 0.7, "precision": 0.94, "prompts": 2000, "passing": 1234, "kept": 999}
        ensemble = {"id": {"exact_match": 0.912}, "ood": {"exact_match": 0.456}}
        full["passes"] = [
            {"number": 0, "ensemble": ensemble},
            {"number": 1, "ensemble": ensemble, "record": record, "right": 0.789},
            {"number": 2, "record": record | {"number": 2, "kept": 0, "passing": 111}},
        ]
        html = page(full, {}, {})
        assert "999 of 2000" in html
        assert "<td>78.9</td>" in html
        assert "45.6" in html
        assert "Pass 2 did not take place, and the ensemble stayed as it was: 111 of 2000" in text_of(html)


class TestMissingParts:
    def test_a_minimal_run_has_a_page_a_plot_and_a_table(self, minimal, tmp_path):
        text = text_of(write_report(minimal, tmp_path).read_text(encoding="utf-8"))
        assert "This run evaluated neither the ensemble nor its student." in text
        assert "50.0" in text
        assert "20.0–80.0" in text
        assert "no record of its rounds" in text
        assert [p.name for p in (tmp_path / "plots").iterdir()] == ["systems.png"]
        assert "One expert  50.0 (20.0–80.0)    –" in table_of(minimal)

    def test_no_results_at_all_still_make_a_page(self, tmp_path):
        text = text_of(write_report({}, tmp_path).read_text(encoding="utf-8"))
        assert "This run evaluated no systems." in text
        table_of({})

    @pytest.mark.slow
    def test_whatever_is_null_or_absent_the_page_and_the_table_render(self, full):
        full["examples"] = full["examples"][:1]
        full["comparisons"] = full["comparisons"][:2]
        full["rounds"] = full["rounds"][:2]

        def paths(node, depth=4):
            items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
            for key, value in items:
                yield (key,)
                if depth > 1:
                    yield from ((key, *rest) for rest in paths(value, depth - 1))

        refused, shown = set(), ("ensemw2s", "student_single")
        # Two systems stand for all: their parts have the same shape.
        for path in list(paths(full)):
            if path[0] in ("systems", "bases", "pgr") and path[1:2] not in ((), *((name,) for name in shown)):
                continue
            if isinstance(path[-1], int):
                continue
            for absent in (False, True):
                parent = holed = copy.copy(full)
                for key in path[:-1]:
                    parent[key] = copy.copy(parent[key])
                    parent = parent[key]
                if not absent:
                    parent[path[-1]] = None
                else:
                    del parent[path[-1]]
                try:
                    RunResults.model_validate(holed)
                except ValidationError:
                    refused.add(".".join(key for key in path if isinstance(key, str)))
                    continue
                page(holed, {}, {})
                print_table(holed, Console(file=io.StringIO(), width=80))
        whole = {name for name in refused if not name.startswith(("rounds.", "task."))}
        assert whole == {
            *(f"systems.{name}.cost.{key}" for name in shown for key in full["systems"][name]["cost"]),
            *(f"comparisons.{key}" for key in ("a", "b", "split")),
            "stages.name",
        }, "only what a row is about must be there, and a cost, a round and a task must be whole"

    @pytest.mark.slow
    @pytest.mark.parametrize("part", ["systems", "rounds", "curves", "labels"])
    def test_a_plot_without_numbers_is_left_out_and_the_others_stay(self, full, part):
        names = {"systems": {"systems"}, "rounds": {"alpha", "weights"}, "curves": {"rounds"}, "labels": {"agreement"}}[
            part
        ]
        del full[part]
        assert set(render(full, LIGHT)) == set(PLOTS) - names

    @pytest.mark.slow
    def test_plots_take_nulls_a_single_round_and_several_experts(self, full):
        full["rounds"] = full["rounds"][:1]
        entry = full["rounds"][0]
        entry.update(alpha=-0.5, accepted=False, reference_error=None)
        entry["experts"] = [entry["experts"][0], entry["experts"][0] | {"alpha": 0.1}]
        entry["weights"] |= {"min": 0.0, "p50": float("nan")}
        full["curves"] = {"rounds": [1], "validation": [None], "id": [0.4]}
        full["systems"]["bagging"]["ood"] = None
        full["systems"]["expert_single"]["id"]["ci95"] = None
        full["labels"] = {"ensemw2s": {"agreement_bins": [{"lo": 0.9, "hi": 1.0, "n": 3, "accuracy": 1.0}]}}
        for theme in (LIGHT, DARK):
            images = render(full, theme)
            assert set(images) == set(PLOTS)
            assert all(png.startswith(PNG) for png in images.values())


class TestTable:
    def test_ends_a_run_with_systems_pgr_and_seconds_in_80_columns(self, full):
        printed = table_of(full)
        assert max(len(line) for line in printed.splitlines()) <= 80
        for name in SYSTEMS:
            assert TABLE[name].label in printed
        row = next(line for line in printed.splitlines() if line.startswith("Student of EnsemW2S"))
        assert row.split()[-1] == f"{full['pgr']['student_ensemw2s']['ood']['value']:.2f}"
        assert re.search(r"96\.4 \(\d\d\.\d–\d\d\.\d\)", row)
        assert re.search(r"pretraining +1 min 32 s +reused", printed)
        assert re.search(r"total +4 min 20 s", printed)

    def test_says_where_the_ensemble_does_not_win(self, full):
        printed = " ".join(table_of(full).split())
        assert "It does not win against bagging of as many experts: no difference on ID" in printed


def test_wilson_interval_of_none_of_ten_is_the_textbook_one():
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(10, 10)[1] == pytest.approx(1.0)


def test_a_report_is_written_until_something_of_it_is_missing_or_its_results_are_newer(tmp_path):
    page, results = tmp_path / "report.html", tmp_path / "results.json"
    for file in (page, results):
        file.touch()
    os.utime(results, ns=(page.stat().st_mtime_ns,) * 2)
    assert not reports.is_written(tmp_path), "its plots are missing"
    (tmp_path / "plots").mkdir()
    assert reports.is_written(tmp_path)
    os.utime(results, ns=(page.stat().st_mtime_ns + 1,) * 2)
    assert not reports.is_written(tmp_path), "its results are newer"
    page.unlink()
    assert not reports.is_written(tmp_path), "its page is missing"
