"""Writes docs/results.md from the files of finished studies, so that no number there is typed.

    python docs/refresh_results.py docs/studies/*.json*

Each argument is the study.json of a study, or the folder that has it. Where its study.parquet lies beside it (under the
same name), the statistics are made anew from that. The page has nothing of studies that are not named.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from ensemw2s.config.study import StudyConfig
from ensemw2s.study import questions, report, tables
from ensemw2s.study.records import Diagnosis, StudyResults
from ensemw2s.study.sheet import lower_first
from ensemw2s.study.summary import associations, summarise

ROOT = Path(__file__).parent.parent

INTRODUCTION = """\
# Results

<!-- Written by `python docs/refresh_results.py docs/studies/*.json*`; change nothing here by hand. -->

What the studies in `configs/studies/` gave, good or bad. [Running a study](study.md) says how they are made, and
[the method](method.md) what the words mean.

Intervals are over seeds. Each seed draws examples and all trainings anew, and also the pre-training where a model is
made here. A claim *held* if the 95 % interval of its difference is above 0, and *did not hold* if 0 is in it. With
fewer than three seeds neither is said.

Two figures stand beside a difference:

- The interval is of the mean over seeds. It is made from as many values as there are seeds.
- p is of a test that flips the signs of pairs, one pair for each task and seed.

They can disagree. Tasks that differ make p large where seeds agree. Many pairs make p small where three seeds leave the
interval wide. Trust what both say. Neither says anything about tasks that are not in the study.

In tiny, ablation and confirm, the bases are models of 30 thousand parameters that were made here and have read solved
hard problems before ([what they have read](method.md#what-the-tiny-models-have-read)). So compare every OOD figure with
the weak bases as they are (ablation was run without these). A commit with `-dirty` behind it is that commit with
uncommitted changes of its day.
"""

OTHERS_CODE = """\
**Does other people's code see the same accuracy?** Yes: `lm_eval`, through the Hugging Face interface of a trained
ensemble, gets the accuracy of our own evaluation, example by example (`tests/ensemble/test_model_lm_eval.py`).
"""


def page(summaries: list[StudyResults]) -> str:
    """The whole page from what studies say."""
    known = {path.stem for path in (ROOT / "ensemw2s" / "recipes" / "studies").glob("*.yaml")}
    lines = [INTRODUCTION, "## What reviewers of the paper asked\n"]
    for question, said in questions.answers(summaries, known - {summary.name for summary in summaries}):
        lines += [f"**{question}**\n", "\n".join(f"- {sentence}" for sentence in said) + "\n"]
    lines += [OTHERS_CODE, "## The studies\n"]
    lines += [_contents(summary) for summary in summaries]
    return "\n".join([*lines, *(line for summary in summaries for line in section(summary))])


def _contents(summary: StudyResults) -> str:
    """The tables of a study, linked."""
    name = summary.name
    titles = (lower_first(sheet.title) for sheet in tables.sheets(summary))
    linked = [f"[{title}]({questions.anchor(f'{name}: {title}')})" for title in titles]
    return f"- [{name}]({questions.anchor(name)}): {', '.join(linked)}\n"


def section(summary: StudyResults) -> Iterator[str]:
    """One study: where its figures come from, what held, and its tables."""
    yield f"## {summary.name}\n"
    yield ", ".join(f"{key} {value}" for key, value in report.facts(summary)) + ".\n"
    for name, reason in summary.failed.items():
        yield f"Failed: {name}: {reason}\n"
    for said, sentences in tables.verdicts(summary).items():
        if sentences:
            yield f"### {summary.name}: {lower_first(said)}\n"
            yield "\n".join(f"- {sentence}" for sentence in sentences) + "\n"
    for sheet in tables.sheets(summary):
        yield f"### {summary.name}: {lower_first(sheet.title)}\n"
        yield report.markdown(sheet) + "\n"


def read(studies: list[Path]) -> str:
    """The whole page of these studies: their study.json files, or folders."""
    return page([_study(path / "study.json" if path.is_dir() else path) for path in studies])


def _study(path: Path) -> StudyResults:
    """What a study says by the statistics of today; of one without rows, what can be made from its points alone."""
    told, rows = StudyResults.read(path), path.with_name(f"{path.name.split('.')[0]}.parquet")
    resamples = told.resamples or StudyConfig.model_fields["resamples"].default
    if rows.exists():
        others = {entry.variant for entry in told.other_data}
        against = {entry.variant: entry.against for entry in told.pairs if entry.against}
        figures = summarise(pd.read_parquet(rows), resamples=resamples, other_data=others, against=against)
        return told.model_copy(update=dict(figures))
    points = told.diagnosis.points
    return told.model_copy(
        update={"diagnosis": Diagnosis(points=points, associations=tuple(associations(points, resamples)))}
    )


def main(studies: list[Path]) -> None:
    """Reads the studies and writes the page."""
    if not studies:
        raise SystemExit(__doc__)
    (ROOT / "docs" / "results.md").write_text(read(studies), encoding="utf-8")


if __name__ == "__main__":
    main([Path(study) for study in sys.argv[1:]])
