"""The command that repeats a config over tasks, variants and seeds."""

from __future__ import annotations

from typing import Annotated

import typer

from ensemw2s.cli import options
from ensemw2s.cli.options import option
from ensemw2s.cli.outcome import Output, before_work, outcome, say
from ensemw2s.errors import ConfigError


def study(
    config: options.StudyFile,
    set_: options.Overrides = None,
    plan: Annotated[bool, typer.Option("--plan", help="List the cells and what is done; change nothing.")] = False,
    only_report: Annotated[
        bool, typer.Option("--report", help="Write the report of the cells that are done; run nothing.")
    ] = False,
    from_: options.Results = None,
    json: Annotated[bool, option("--json", "With --plan: print JSON, for programs, in place of the table.")] = False,
    debug: options.Debug = False,
) -> None:
    """Run a config over tasks, variants and seeds, and say what holds over all of them.

    A study file has a base config, tasks and variants (changes to the base, by dotted key), and seeds. Each
    combination is a cell: one whole run. Cells run one after another on one Ray. What they share is made once: data,
    pre-trained bases, equal rounds and baselines. Every cell has the standard baselines, whatever its config says:
    the vote of the untuned bases, a deep ensemble, the best single expert, and one expert with the training budget of
    all rounds.

    Results go to STORAGE/NAME: study.parquet (a row for each cell, system and split), study.json, study.html and
    cells/. The page has means with 95 % intervals over seeds, differences from the baselines with permutation tests,
    curves over rounds, the recovered performance gap, the training cost in tokens, and how the experts' errors
    overlap. The number of rounds is chosen on validation examples, never on test examples.

    The same command continues a study that was stopped, and does nothing for a complete one. If a cell fails, the
    others still run, the exit code is 1, and the next call tries that cell again. With --set, keys of the base config
    begin with base.

    With --from, cells that were run elsewhere are not run again: their rows are taken from the study.parquet that is
    given, where fingerprints say that nothing in a cell has changed since. The study's folder keeps them, so the next
    call needs no --from.

        ensemw2s study tiny --plan
        ensemw2s study tiny --from docs/studies/tiny.parquet
        ensemw2s study tiny
        ensemw2s study tiny --set seeds=[0] --set base.boosting.rounds=2 --set name=small
    """
    with outcome(debug=debug, resumable=True):
        from ensemw2s.config.study import load_study
        from ensemw2s.progress import Progress
        from ensemw2s.study import study as work
        from ensemw2s.study.cells import study_directory
        from ensemw2s.study.taken import take

        if json and not plan:
            raise ConfigError("--json: give --plan, too")
        loaded = load_study(config, set_)
        with before_work():
            cells, sources = work.check(loaded), from_ or []
            taken = take(cells, study_directory(loaded), sources, keep=only_report)
        if plan:
            from ensemw2s.study.survey import StudyPlanRecord, here_of, print_plan, survey

            with before_work():
                here = here_of([cell for cell in cells if cell.name not in taken])
            found = survey(cells, taken, sources)
            if json:
                say(StudyPlanRecord.of(loaded.name, found, here).model_dump_json(indent=2))
            else:
                print_plan(found, Output(), here)
        elif only_report:
            work.show(work.write(loaded, cells, {}, taken), loaded, Output())
        else:
            work.run(loaded, sources=sources, debug=debug, progress=Progress(Output()))
