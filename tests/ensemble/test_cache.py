import pytest
import torch

from ensemw2s.ensemble.cache import EnsembleCache
from ensemw2s.ensemble.model import EnsembleForCausalLM


@pytest.fixture
def ensemble(experts) -> EnsembleForCausalLM:
    return EnsembleForCausalLM(experts, [1.0, 2.0, 1.5])


@pytest.fixture
def cache(ensemble) -> EnsembleCache:
    cache = ensemble.new_cache()
    with torch.no_grad():
        ensemble(torch.arange(3, 18).reshape(3, 5), past_key_values=cache)
    return cache


def keys(cache: EnsembleCache) -> list[torch.Tensor]:
    return [layer.keys.clone() for member in cache.members for layer in member.layers]


def test_every_member_has_its_own_cache_of_the_same_length(cache):
    assert len(cache.members) == 3
    assert len(cache) == 6
    assert [member.get_seq_length() for member in cache.members] == [5, 5, 5]
    assert cache.get_seq_length() == 5


@pytest.mark.parametrize("rows", [[2, 0, 1], [1, 1, 2], [2], [0, 2]])
def test_rows_are_selected_and_reordered_in_all_members(cache, rows):
    before = keys(cache)
    cache.batch_select_indices(torch.tensor(rows))
    for old, new in zip(before, keys(cache), strict=True):
        torch.testing.assert_close(new, old[rows])


def test_rows_are_repeated_in_all_members(cache):
    before = keys(cache)
    cache.batch_repeat_interleave(2)
    for old, new in zip(before, keys(cache), strict=True):
        torch.testing.assert_close(new, old[[0, 0, 1, 1, 2, 2]])


def test_cropping_removes_the_last_tokens_of_all_members(cache):
    before = keys(cache)
    cache.crop(-2)
    assert cache.get_seq_length() == 3
    for old, new in zip(before, keys(cache), strict=True):
        torch.testing.assert_close(new, old[:, :, :3])


def test_a_reset_cache_is_empty(cache):
    cache.reset()
    assert cache.get_seq_length() == 0
