from typing import Any

import pytest

from ensemw2s.config_study import StudyConfig
from ensemw2s.errors import DataError, StudyError
from ensemw2s.study import study as studies
from ensemw2s.study.cells import expand

from ..test_config_study import RUN


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
