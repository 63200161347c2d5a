import io

import pytest
from rich.console import Console

from ensemw2s.config.study import StudyConfig
from ensemw2s.pipeline.plan import training_steps
from ensemw2s.storage import store
from ensemw2s.study.cells import Cell, expand
from ensemw2s.study.survey import print_plan, survey

from ..config.test_study import RUN


@pytest.fixture
def cells(tmp_path) -> list[Cell]:
    evaluation = {"evaluation": {"systems": ["ensemw2s"]}, "boosting": {"rounds": 2}}
    values = {"name": "s", "storage": str(tmp_path), "base": RUN | evaluation, "seeds": [0]}
    return expand(StudyConfig.model_validate({**values, "variants": {"vote": {"ensemble.combine": "vote"}}}))


def finish(stage: store.Stage) -> None:
    stage.path.mkdir(parents=True)
    store.finish(stage.path, stage.description)


def test_what_cells_share_is_counted_once(cells) -> None:
    """Two bases; two boosted experts, two bagged ones and two single ones, all of both cells."""
    found = survey(cells)
    assert found.models == 8
    steps = training_steps(cells[0].graph)
    assert found.steps == sum(steps.values())
    assert found.waiting == found.stages < sum(state.stages for state in found.cells)
    finish(cells[0].graph.bases[0].stage)
    again = survey(cells)
    assert again.steps == found.steps - steps[cells[0].graph.bases[0].stage.name]
    assert (again.models, again.waiting, again.stages) == (7, found.waiting - 1, found.stages)
    assert [state.done for state in again.cells] == [1, 1]


def test_a_cell_is_done_with_its_evaluation(cells) -> None:
    finish(cells[1].graph.evaluation)
    found = survey(cells)
    assert [state.complete for state in found.cells] == [False, True]
    console = Console(file=io.StringIO(), width=100)
    print_plan(found, console)
    shown = console.file.getvalue()
    assert "vote" in shown
    assert "1 of 2 cells are done" in shown
    assert f"with 8 models to train in {found.steps} steps" in " ".join(shown.split())
