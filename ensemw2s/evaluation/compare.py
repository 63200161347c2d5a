"""`ensemw2s compare`: the folders of two runs go in, their systems side by side and where they differ come out.

Differences are paired over the test examples, as inside a run, so both runs must have answered the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ensemw2s.boosting.records import members_of
from ensemw2s.config import AnswerMatch
from ensemw2s.config.evaluation import EvaluationConfig
from ensemw2s.config.systems import TABLE
from ensemw2s.config.tree import read_tree
from ensemw2s.data.answers import answer_key
from ensemw2s.data.examples import derive_seed
from ensemw2s.errors import ConfigError
from ensemw2s.evaluation import metrics as m
from ensemw2s.evaluation import outcomes
from ensemw2s.evaluation.records import RESULTS, Interval, RunResults, Verdict
from ensemw2s.evaluation.wording import SPLITS, label, listed, percent, points, points_range, systems_of
from ensemw2s.labeling.inputs import run_of
from ensemw2s.storage import remote, store
from ensemw2s.storage.record import Record

ANSWERS = "evaluation/answers.parquet"


class SystemCompared(Record):
    """One system of both runs on one split.

    Attributes:
        system: Its name.
        split: `id` or `ood`.
        n: Number of examples.
        exact_match: Share of the examples that it answers exactly, in the first and in the second run.
        ci95: The interval of each.
        difference: Mean over the examples of second − first.
        difference_ci95: Its interval; pairs are resampled.
        verdict: What that says of the second run's system.
        only_first: Examples that only the first run's system answers (of averaged bases: that more of them answer).
        only_second: The same of the second run's.
    """

    system: str
    split: str
    n: int
    exact_match: tuple[float, float]
    ci95: tuple[Interval, Interval]
    difference: float
    difference_ci95: Interval
    verdict: Verdict
    only_first: int
    only_second: int


class ExampleCompared(Record):
    """A test example that a system answers in one of the runs only.

    Attributes:
        system: Name of the system.
        split: `id` or `ood`.
        id: Id of the example.
        prompt: Its prompt; None in runs that did not keep it.
        truth: Its true answer.
        answers: What the system answered, in the first and in the second run.
        right: Whose answer is right, `first` or `second`.
    """

    system: str
    split: str
    id: str
    prompt: str | None
    truth: str
    answers: tuple[str, str]
    right: str


class RunsCompared(Record):
    """What `ensemw2s compare --json` prints.

    Attributes:
        runs: Folders of the first and of the second run.
        systems: Each system that both have, on each test split.
        examples: Every example that a system answers in one run only; not of averages over bases.
        only_in: Systems that only the first run has, and those that only the second has.
    """

    runs: tuple[str, str]
    systems: tuple[SystemCompared, ...]
    examples: tuple[ExampleCompared, ...]
    only_in: tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Split:
    """The test examples of a split, and every voter's answers to them, in the order of the ids."""

    ids: list[str]
    prompts: list[str] | None
    truths: list[str]
    answers: dict[str, list[str]]


@dataclass(frozen=True)
class Answered:
    """What is read of a run: its results, its answers by split, and how its config compares answers."""

    shown: str
    results: RunResults
    splits: dict[str, Split]
    match: AnswerMatch
    resamples: int

    @property
    def votes(self) -> dict[str, float]:
        return {member.name: member.weight for member in members_of(self.results.rounds) if member.weight > 0}

    @property
    def systems(self) -> list[str]:
        """The systems whose answers are all there."""
        answered = self.splits["id"].answers
        wanted = {name: outcomes.voters_of(name, answered, self.votes) for name in systems_of(self.results)}
        return [name for name, voters in wanted.items() if voters and set(voters) <= answered.keys()]


def read_results(run: Path) -> RunResults:
    """The results of a run.

    Raises:
        ArtifactError: If they are damaged.
        ConfigError: If the folder has none; names the run that it is a part of.
    """
    if remote.exists(run / RESULTS):
        return RunResults.read(run / RESULTS)
    above = run_of(run)
    if above is not None and above != run.resolve():
        raise ConfigError(f"{remote.shown(run)} is a part of a run; give the run: {remote.shown(above)}")
    raise ConfigError(f"{remote.shown(run)} has no {RESULTS}; a run writes it at its end (ensemw2s run CONFIG)")


def read(run: Path) -> Answered:
    """Reads what a run answered.

    Raises:
        ArtifactError: If a file is damaged.
        ConfigError: If the folder is no finished run's, or lacks its answers.
    """
    results, shown = read_results(run), remote.shown(run)
    if not remote.exists(run / ANSWERS) or not remote.exists(run / "config.yaml"):
        raise ConfigError(f"{shown} has no {ANSWERS} or no config.yaml: a comparison needs the whole folder of a run")
    table = store.read_table(remote.pull(run / ANSWERS))
    columns = table.column_names
    splits: dict[str, Split] = {}
    for split in SPLITS:
        voters: dict[str, list[dict[str, str]]] = {}
        for row in table.to_pylist():
            if row["split"] == split:
                voters.setdefault(row["voter"], []).append(row)
        for rows in voters.values():
            rows.sort(key=lambda row: row["id"])
        first = next(iter(voters.values()), [])
        splits[split] = Split(
            ids=[row["id"] for row in first],
            prompts=[row["prompt"] for row in first] if "prompt" in columns else None,
            truths=[row["truth"] for row in first],
            answers={voter: [row["answer"] for row in rows] for voter, rows in voters.items()},
        )
    tree = read_tree(remote.pull(run / "config.yaml"))
    data, evaluation = tree.get("data", {}), tree.get("evaluation", {})
    return Answered(
        shown,
        results,
        splits,
        TypeAdapter(AnswerMatch).validate_python(data.get("answer_match", "exact")),
        int(evaluation.get("bootstrap_samples", EvaluationConfig.model_fields["bootstrap_samples"].default)),
    )


def compare(first: Answered, second: Answered) -> RunsCompared:
    """Holds the systems of two runs against each other.

    Raises:
        ConfigError: If their test examples are not the same, they compare answers differently, or they share no system.
    """
    check_same_examples(first, second)
    shared = [name for name in first.systems if name in second.systems]
    if not shared:
        raise ConfigError(
            f"{first.shown} and {second.shown} have no system in common: {', '.join(first.systems)} against "
            f"{', '.join(second.systems)}"
        )
    systems, examples = [], []
    for name in shared:
        for split in SPLITS:
            found, apart = _system(name, split, first, second)
            systems.append(found)
            examples += apart
    return RunsCompared(
        runs=(first.shown, second.shown),
        systems=tuple(systems),
        examples=tuple(examples),
        only_in=(
            tuple(name for name in first.systems if name not in shared),
            tuple(name for name in second.systems if name not in shared),
        ),
    )


def check_same_examples(first: Answered, second: Answered) -> None:
    """Raises `ConfigError` where two runs were not asked the same questions, or count other answers as right."""
    for split, name in SPLITS.items():
        ours, theirs = first.splits[split], second.splits[split]
        questions = [set(zip(found.ids, found.truths, strict=True)) for found in (ours, theirs)]
        if questions[0] != questions[1]:
            raise ConfigError(
                f"{first.shown} and {second.shown} have different {name} test examples ({len(ours.ids)} and "
                f"{len(theirs.ids)}, of which {len(questions[0] & questions[1])} are the same), so that their "
                "differences would be of the examples, too. Runs can be compared that have the same `data` and, "
                "where examples are drawn, the same `seed`; over seeds, `ensemw2s study` compares"
            )
    if first.match != second.match:
        raise ConfigError(
            f"{first.shown} and {second.shown} compare answers in different ways (data.answer_match): "
            f"{first.match!r} and {second.match!r}"
        )


def _system(name: str, split: str, first: Answered, second: Answered) -> tuple[SystemCompared, list[ExampleCompared]]:
    asked, key = first.splits[split], answer_key(first.match)
    given = [outcomes.answers_of(name, run.splits[split].answers, run.votes, key) for run in (first, second)]
    left, right = (np.asarray(outcomes.right(answers, asked.truths, key), dtype=np.float64) for answers in given)
    samples, seed = first.resamples, derive_seed(first.results.seed or 0, "statistics")
    found = m.paired_difference(right, left, samples=samples, seed=seed)
    around = [m.interval(exact, samples=samples, seed=seed) for exact in (left, right)]
    assert found.ci95 is not None
    prompts = asked.prompts or second.splits[split].prompts
    compared = SystemCompared(
        system=name,
        split=split,
        n=len(left),
        exact_match=(float(left.mean()), float(right.mean())),
        ci95=(around[0], around[1]),
        difference=found.difference,
        difference_ci95=found.ci95,
        verdict=m.verdict(*found.ci95, n=len(left), figures=around),
        only_first=int(np.sum(left > right)),
        only_second=int(np.sum(right > left)),
    )
    if name in TABLE and TABLE[name].averages_bases:
        return compared, []
    return compared, [
        ExampleCompared(
            system=name,
            split=split,
            id=asked.ids[i],
            prompt=prompts[i] if prompts is not None else None,
            truth=asked.truths[i],
            answers=(given[0][0][i], given[1][0][i]),
            right="first" if left[i] > right[i] else "second",
        )
        for i in np.flatnonzero(left != right).tolist()
    ]


def print_comparison(found: RunsCompared, console: Console, *, system: str, shown: int) -> None:
    """Prints a table for each split, and examples on which one system differs.

    Args:
        found: The comparison.
        console: Where to print.
        system: The system whose examples are shown.
        shown: How many of each split.
    """
    for name, run in zip(("first", "second"), found.runs, strict=True):
        console.print(Text(f"{name + ':':<8}{run}"), soft_wrap=True)
    for split, short in SPLITS.items():
        rows = [row for row in found.systems if row.split == split]
        console.print()
        console.print(_table(rows, f"{short}: exact match in %, n = {rows[0].n}; differences with 95 % intervals"))
        console.print(Text(_verdicts(rows)))
    for name, only in zip(("first", "second"), found.only_in, strict=True):
        if only:
            console.print()
            console.print(Text(f"Only in the {name} run: {'; '.join(map(label, only))}"))
    for split, short in SPLITS.items():
        apart = [row for row in found.examples if (row.system, row.split) == (system, split)]
        chosen = apart[:shown]
        if chosen:
            title = f"{label(system)}, {short}: {len(chosen)} of {len(apart)} examples that one run alone answers"
            console.print()
            console.print(Text(title))
            console.print(_examples(chosen))


def _table(rows: Sequence[SystemCompared], title: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for heading in ("First", "Second", "Second − first", "Only first", "Only second"):
        table.add_column(heading, justify="right", no_wrap=not heading.startswith("Only"))
    for row in rows:
        figures = [percent(x, "") for x in row.exact_match]
        difference = f"{points(row.difference)} ({points_range(row.difference_ci95)})"
        style = "bold" if row.system in TABLE and TABLE[row.system].ours else ""
        cells = [label(row.system), *figures, difference, str(row.only_first), str(row.only_second)]
        table.add_row(*map(Text, cells), style=style)
    return table


def _verdicts(rows: Sequence[SystemCompared]) -> str:
    """Which systems of the second run are better or worse, in a sentence."""
    by_verdict: dict[str, list[str]] = {"no difference": [], "better": [], "worse": []}
    for row in rows:
        by_verdict.setdefault(row.verdict, []).append(label(row.system))
    same = len(by_verdict.pop("no difference"))
    if same == len(rows):
        return "No system differs: every interval includes 0."
    said = [f"{kind} in {len(who)}" + (f" ({'; '.join(who)})" if who else "") for kind, who in by_verdict.items()]
    return f"Of {len(rows)} systems, the second run’s is {listed([*said, f'no different in {same}'])}."


def _examples(rows: Sequence[ExampleCompared]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("Prompt", "True answer", "First", "Second", "Right"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        prompt = row.id if row.prompt is None else row.prompt
        table.add_row(*map(Text, (prompt, row.truth, *row.answers, row.right)))
    return table
