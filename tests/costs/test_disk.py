"""What a run takes in storage: every model once, and the copies that an ensemble has of its members."""

from ensemw2s.costs.disk import Disk, disk
from ensemw2s.costs.needs import shapes
from ensemw2s.pipeline.build import build_graph

from ..pipeline.test_plan import config


def of(tmp_path, lanes=1, **settings) -> tuple[Disk, int, int]:
    """Disk of a run, and the bytes of a weak and of a strong model."""
    graph = build_graph(config(tmp_path, **settings))
    sizes = shapes(graph)
    weak, strong = (4 * sizes[base.name].parameters for base in (graph.weak[0], graph.strong))
    return disk(graph, sizes, lanes), weak, strong


def test_every_model_counts_and_members_count_twice(tmp_path) -> None:
    found, weak, strong = of(tmp_path)
    graph = build_graph(config(tmp_path))
    rounds, baselines = len(graph.boosted), len(graph.baseline_experts)
    expected = (len(graph.weak) + 2 * rounds + baselines) * weak + (1 + len(graph.students)) * strong
    assert (found.models, found.passes) == (expected, 0)


def test_a_pass_takes_what_its_members_take_and_the_words_say_so(tmp_path) -> None:
    before, weak, _ = of(tmp_path)
    found, _, _ = of(tmp_path, consensus__passes=2)
    rounds = len(build_graph(config(tmp_path)).boosted)
    assert found.models - before.models == found.passes == 2 * rounds * weak
    assert "of them in consensus passes" in found.words()
    assert "consensus" not in before.words()


def test_checkpoints_are_of_the_trainings_side_by_side(tmp_path) -> None:
    one, _, strong = of(tmp_path)
    assert one.checkpoints == 3 * strong
    assert of(tmp_path, lanes=4)[0].checkpoints == 4 * one.checkpoints
    none = of(tmp_path, training__checkpoint_seconds=None)[0]
    assert none.checkpoints == 0
    assert "checkpoints" not in none.words()
    assert Disk(models=2_500_000_000, passes=0, checkpoints=0).words().startswith("at most about 2.5 GB of weights.")
