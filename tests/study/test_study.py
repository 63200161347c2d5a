import io
import json
from contextlib import nullcontext
from typing import Any

import pytest
from rich.console import Console

from ensemw2s.config.study import StudyConfig
from ensemw2s.env import LOG
from ensemw2s.errors import DataError, StudyError
from ensemw2s.pipeline.context import Context
from ensemw2s.progress import Progress, stage_metrics
from ensemw2s.study import study as studies
from ensemw2s.study.cells import expand
from ensemw2s.study.row import StudyRow

from ..config.test_study import RUN
from .conftest import rows_of


def study(tmp_path, **values: Any) -> StudyConfig:
    return StudyConfig.model_validate({"name": "s", "storage": str(tmp_path), "base": RUN, "seeds": [0, 1], **values})


def test_what_cannot_work_is_told_with_its_cell_before_anything_starts(tmp_path) -> None:
    missing = {"data.source": {"kind": "files", "paths": [str(tmp_path / "no.jsonl")]}, "data.split.mode": "random"}
    with pytest.raises(DataError, match=r"^own, default: .*no\.jsonl"):
        studies.check(study(tmp_path, tasks={"base": {}, "own": missing}))
    assert list(tmp_path.iterdir()) == []


def test_a_report_of_nothing_says_why(tmp_path) -> None:
    wanted = study(tmp_path)
    with pytest.raises(StudyError, match="no cell of study s is finished; none was run"):
        studies.write(wanted, expand(wanted), {})
    with pytest.raises(StudyError, match="base, default, seed 0: no room"):
        studies.write(wanted, expand(wanted), {"base, default, seed 0": "no room"})


def test_lines_for_machines_and_metrics_say_which_cell_they_are_about(tmp_path, monkeypatch) -> None:
    wanted, out = study(tmp_path), io.StringIO()
    told: list[tuple[str, str]] = []

    def running(run: str, stage: str) -> Any:
        told.append((run, stage))
        return nullcontext()

    def work(shop: Any, cell: Any) -> None:
        context: Any = Context(cell.graph, None, shop.progress, None, on_stage=lambda *_: None)
        with context.stage("data", "examples"):
            raise DataError("no room")

    monkeypatch.setattr(stage_metrics, "running", running)
    monkeypatch.setattr(studies, "connect", lambda *_, **__: nullcontext("2 CPUs"))
    monkeypatch.setattr(studies._Workshop, "run", work)
    monkeypatch.setenv(LOG.name, "json")
    with pytest.raises(StudyError, match="no room"):
        studies.run(wanted, progress=Progress(Console(file=out)))
    assert told == [("s/base.default.0", "data"), ("s/base.default.1", "data")]
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert {line["run"] for line in lines} == {"s", "s/base.default.0", "s/base.default.1"}
    assert [line["run"] for line in lines if line.get("event") == "begin"] == [run for run, _ in told]


@pytest.mark.slow
def test_a_report_of_what_is_done_names_what_failed_and_who_made_the_cells(tmp_path, monkeypatch) -> None:
    wanted = study(tmp_path, seeds=[0, 1, 2])
    cells = expand(wanted)
    done = {str(cell.graph.evaluation.path) for cell in cells[:2]}
    monkeypatch.setattr(studies.steps, "done", lambda stage: str(stage.path) in done)
    monkeypatch.setattr(
        studies.rows, "of_cell", lambda cell: [StudyRow.model_validate(r) for r in rows_of("base", cell.config.seed)]
    )
    folder = tmp_path / "s"
    (folder / "cells").mkdir(parents=True)
    for cell, commit in zip(cells, ("one", "two"), strict=False):
        studies.store.put_json(folder / "cells" / f"{cell.slug}.json", {"git_commit": commit})
    first = studies.write(wanted, cells, {cells[1].name: "slow", cells[2].name: "no room"})
    assert (first.finished, first.cells, first.missing) == (2, 3, (cells[2].name,))
    assert first.commits == {"one": 1, "two": 1}
    again = studies.write(wanted, cells, {})
    assert again.failed == {cells[2].name: "no room"}, "of the others that are missing"
    done.add(str(cells[2].graph.evaluation.path))
    assert studies.write(wanted, cells, {}).failed == {}
