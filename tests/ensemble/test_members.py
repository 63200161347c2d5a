import shutil

import pytest
import torch

from ensemw2s.ensemble.members import AdapterMember, load_members, place
from ensemw2s.errors import ModelError, ResourceError


def test_adapters_of_one_base_share_one_model_and_full_models_stand_alone(full_folders, adapter_folders):
    first, full, second = load_members([adapter_folders[0], full_folders[0], adapter_folders[1]])
    assert isinstance(first, AdapterMember)
    assert isinstance(second, AdapterMember)
    assert first.model is second.model
    assert first.adapter != second.adapter
    assert not isinstance(full, AdapterMember)


def test_members_are_loaded_in_the_type_asked_for(adapter_folders):
    members = load_members(adapter_folders, dtype=torch.bfloat16)
    assert {p.dtype for p in members[0].model.parameters()} == {torch.bfloat16}


def test_a_missing_member_is_named(tmp_path, full_folders):
    with pytest.raises(ModelError, match="gone: there is no such folder"):
        load_members([full_folders[0], tmp_path / "gone"])


def test_adapters_of_a_larger_rank_config_than_their_weights_are_refused(tmp_path, adapter_folders):
    broken = tmp_path / "broken"
    shutil.copytree(adapter_folders[0], broken)
    text = (broken / "adapter_config.json").read_text().replace('"r": 4', '"r": 8')
    (broken / "adapter_config.json").write_text(text)
    with pytest.raises(ModelError, match="does not fit its base"):
        load_members([adapter_folders[1], broken])


def test_models_stay_together_where_they_fit():
    assert place([3, 4, 2], [9, 9]) == [0, 0, 0]


def test_models_that_do_not_fit_together_go_where_most_room_is():
    assert place([3, 8, 5], [9, 9]) == [1, 0, 1]


def test_a_model_that_fits_nowhere_is_an_error_with_sizes():
    with pytest.raises(ResourceError, match=r"one of 2\.0 GiB, and 1\.0 GiB left"):
        place([2**31, 2**29], [2**30, 2**29])
