"""What a graph knows of its stages."""

from dataclasses import replace

from .test_build import graph


def test_a_base_on_the_hub_is_named_with_its_revision_and_a_folder_without(tmp_path):
    weak = [{"base": "org/model", "revision": "v1"}, {"base": "org/other"}]
    bases = graph(**{"models.weak": weak}).weak
    assert [base.reference for base in bases] == ["org/model@v1", "org/other"]
    assert replace(bases[0], path=str(tmp_path)).reference == str(tmp_path)
