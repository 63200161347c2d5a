"""What decodes with a saved model: how many actors there can be."""

import pytest

from ensemw2s.cluster.resources import Node, Resources
from ensemw2s.config import LabelingConfig
from ensemw2s.errors import ResourceError
from ensemw2s.labeling.inputs import pool_size

HERE = Resources((Node(8, 0), Node(2, 0, frozenset({"decoding"}))))


def test_actors_are_as_many_as_the_nodes_that_they_may_use_hold():
    assert pool_size(HERE, LabelingConfig()) == 10
    assert pool_size(HERE, LabelingConfig(max_actors=3)) == 3
    assert pool_size(HERE, LabelingConfig(node_resource="decoding")) == 2


def test_actors_without_a_node_that_they_may_use_are_refused():
    with pytest.raises(ResourceError, match=r"0 actors .* 0 nodes, .* with the resource a .* or copy the model out of"):
        pool_size(HERE, LabelingConfig(node_resource="a"))
