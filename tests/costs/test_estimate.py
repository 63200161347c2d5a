"""Hours and money of a run: stages add up, nodes are paid whole, and measured speeds replace the model's."""

from dataclasses import replace

import pytest

from ensemw2s.costs import needs
from ensemw2s.costs.estimate import estimate, makespan
from ensemw2s.costs.lengths import Lengths
from ensemw2s.costs.throughput import Measured
from ensemw2s.errors import ConfigError, ResourceError
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.plan import lay_out
from ensemw2s.pipeline.survey import survey
from ensemw2s.storage import store

from ..boosting.conftest import round_record

LENGTHS = Lengths(100, 50, "as given")


def worked_out(config, found, measured=None):
    graph = build_graph(config)
    sizes = needs.shapes(graph)
    plan = lay_out(graph, survey(graph), {name: s.parameters for name, s in sizes.items()})
    return estimate(graph, plan, sizes, found, LENGTHS, measured)


def rows(result):
    return {row.name: row for row in result.rows}


@pytest.mark.parametrize(
    ("times", "lanes", "wanted"), [([3, 3, 2, 2, 2], 2, 7), ([5], 4, 5), ([1, 1, 1], 1, 3), ([], 2, 0)]
)
def test_trainings_are_begun_longest_first(times, lanes, wanted):
    assert makespan(times, lanes) == wanted


def test_hours_follow_from_tokens_and_speed(make_config, make_cluster):
    measured = Measured(expert=100.0, student=50.0, members=1000.0, alone=500.0)
    found = rows(worked_out(make_config(), make_cluster(big=("x.big", 1)), measured))
    tokens = 80 * 4 * 150  # steps × examples × tokens
    assert found["rounds"].seconds == pytest.approx(2 * tokens / 100)
    assert found["baselines"].seconds == pytest.approx(2 * tokens / 100)
    assert found["students"].seconds == pytest.approx(105 * 4 * 150 / 50)
    assert found["labels"].seconds == pytest.approx(100 * 50 * 2 / 1000)
    assert found["students"].gpu_seconds == found["students"].seconds
    assert found["students"].money == pytest.approx(found["students"].seconds / 3600 * 20 / 8), "a GPU of eight"


def test_generations_of_students_are_paid_with_their_labels(make_config, make_cluster):
    measured = Measured(expert=100.0, student=50.0, members=1000.0, alone=500.0)
    changes = {
        "student__generations": 3,
        "student__generation_width": 2,
        "evaluation__systems": ["ensemw2s", "student_ensemw2s", "student_generations"],
    }
    found = rows(worked_out(make_config(**changes), make_cluster(big=("x.big", 1)), measured))
    one, labelled = 105 * 4 * 150 / 50, 100 * 50 * 2 / 1000
    assert found["students"].seconds == pytest.approx(3 * one), "the first generation's beside student_ensemw2s"
    assert found["students, generation 2"].seconds == pytest.approx(2 * one)
    assert found["students, generation 3"].seconds == pytest.approx(one)
    for number in (1, 2):
        assert found[f"labels, generation {number}"].seconds == pytest.approx(labelled)


def test_workers_share_the_time_and_not_the_gpu_hours(make_config, make_cluster):
    found = [
        rows(worked_out(make_config(training__workers=n), make_cluster(big=("x.big", 1))))["rounds"] for n in (1, 4)
    ]
    assert found[0].seconds == pytest.approx(4 * found[1].seconds)
    assert found[0].gpu_seconds == pytest.approx(found[1].gpu_seconds)


def test_nodes_are_paid_whole_with_their_start_and_their_idling(make_config, make_cluster):
    result = worked_out(make_config(), make_cluster(big=("x.big", 1)))
    [big, head] = result.bills
    assert (big.node.kind, big.nodes, head.node.kind) == ("x.big", 1, "x.head")
    assert big.hours == pytest.approx(result.seconds / 3600 + 3 / 60), "up all the time, and idle at the end"
    assert big.money == pytest.approx(big.hours * 20)
    assert head.hours == pytest.approx(result.seconds / 3600)
    assert sum(row.money for row in result.rows) < big.money
    assert result.money == pytest.approx(big.money + head.money) == pytest.approx(result.on_demand)


def test_lanes_that_stay_up_are_paid_while_labels_are_made(make_config, make_cluster):
    found = make_cluster(training=("x.big", 1), decoding=("x.big", 1))
    result = worked_out(make_config(training__node_resource="training", labeling__node_resource="decoding"), found)
    assert {row.node.name for row in result.rows if row.name in ("rounds", "baselines", "students")} == {"training"}
    assert {row.node.name for row in result.rows if row.name in ("scoring", "labels", "evaluation")} == {"decoding"}
    hours, phases = {bill.node.name: bill.hours for bill in result.bills}, rows(result)
    overhead = (6 + 3) * 60
    work = sum(row.seconds for row in result.rows)
    assert hours["training"] * 3600 == pytest.approx(work - phases["evaluation"].seconds + overhead)
    decoding = phases["scoring"].seconds + phases["rounds"].seconds
    assert hours["decoding"] * 3600 == pytest.approx(
        decoding + phases["labels"].seconds + phases["evaluation"].seconds + overhead
    )


def test_lanes_and_actors_share_a_node_that_has_room_for_both(make_config, make_cluster):
    found = make_cluster(big=("x.big", 4))
    assert [bill.nodes for bill in worked_out(make_config(), found).bills] == [1, 1]
    wide = make_config(training__lanes=2, training__workers=4, labeling__max_actors=2, labeling__chunk_size=10)
    assert [bill.nodes for bill in worked_out(wide, found).bills] == [2, 1], "8 workers, and 2 actors on another"


def test_baselines_run_beside_the_rounds_where_there_are_lanes(make_config, make_cluster):
    found = make_cluster(big=("x.big", 1))
    alone, beside = (worked_out(make_config(training__lanes=n), found) for n in (1, 3))
    assert alone.seconds - beside.seconds == pytest.approx(rows(alone)["baselines"].seconds)


def test_what_is_done_costs_nothing_any_more(make_config, make_cluster):
    config, found = make_config(), make_cluster(big=("x.big", 1))
    graph = build_graph(config)
    for r in graph.rounds:
        for stage in (*(expert.stage for expert in r.experts), r.stage):
            with store.publish(stage.path, stage.description) as folder:
                round_record(r.number, [1.0]).write(folder)
    assert "rounds" not in rows(worked_out(config, found))
    for stage in graph.stages():
        if not store.is_done(stage.path, stage.description):
            with store.publish(stage.path, stage.description):
                pass
    finished = worked_out(config, found)
    assert (finished.rows, finished.money, finished.seconds) == ((), 0, 0)


def test_a_cluster_that_is_too_small_is_refused_as_by_run(make_config, make_cluster):
    with pytest.raises(ResourceError, match=r"training\.workers asks for 16 workers .* but only 8 fit on 1 node"):
        worked_out(make_config(training__workers=16), make_cluster(big=("x.big", 1)))


def test_cpus_of_unknown_speed_need_a_measured_run(make_config, make_cluster):
    config = make_config(
        training__gpus_per_worker=0,
        labeling__gpus_per_actor=0,
        models__weak=[{"base": "tiny-weak"}],
        models__strong={"base": "tiny-strong"},
        models__pretraining={"corpus": {"weak_documents": 100, "strong_documents": 100}},
    )
    found = make_cluster(cpu=("x.cpu", 1))
    known = worked_out(config, found)
    assert known.rows[0].name == "models"
    assert sum(row.gpu_seconds for row in known.rows) == 0
    unknown = replace(found, nodes=tuple(replace(node, processor=None) for node in found.nodes))
    with pytest.raises(ResourceError, match=r"does not say how fast x\.cpu is for what has no GPU: .* --measured RUN"):
        worked_out(config, unknown)
    with pytest.raises(ConfigError, match=r"does not say how fast x\.cpu is for what has no GPU: .* --measured RUN"):
        worked_out(config, unknown, Measured())
    with pytest.raises(ResourceError, match=r"how fast x\.one is for what has no GPU"):
        worked_out(config, make_cluster(one=("x.one", 1)))
    assert worked_out(config, unknown, Measured(expert=1e3, student=1e3, members=1e3, alone=1e3)).money > 0


def test_evaluation_reads_validation_examples_with_weak_systems_and_with_the_ensemble_of_each_round(
    make_config, make_cluster
):
    found = make_cluster(big=("x.big", 1))

    def readings(width):
        """How many members read a validation example."""
        configs = [make_config(boosting__width=width, data__sizes__easy_validation=n) for n in (10, 1010)]
        less, more = (rows(worked_out(config, found))["evaluation"].seconds for config in configs)
        weights = needs.shapes(build_graph(configs[0]))["w0"].multiplied
        return (more - less) / 1000 / LENGTHS.whole * (0.5 * 400e12) / (2 * weights)

    assert readings(1) == pytest.approx(2 + 2 + (1 + 2)), "bagging, the ensemble, and that of either round"
    assert readings(2) == pytest.approx(4 + 4 + (2 + 4))


@pytest.mark.parametrize(
    ("ensemble", "passes"),
    [
        ({"weights": "uniform"}, 0),
        ({"weights": "stacked"}, 1),
        ({"calibration": "temperature"}, 2),
        ({"weights": "stacked", "calibration": "temperature"}, 2),
    ],
)
def test_fitted_votes_read_easy_validation_with_all_experts(ensemble, passes, make_config, make_cluster):
    config, found = make_config(ensemble=ensemble, data__sizes__easy_validation=1000), make_cluster(big=("x.big", 1))
    graph, result = build_graph(config), worked_out(config, found)
    plain = worked_out(make_config(data__sizes__easy_validation=1000), found)
    tokens, weights = passes * 1000 * LENGTHS.whole, needs.shapes(graph)["w0"].multiplied
    seconds = 2 * tokens * 2 * weights / (0.5 * 400e12)
    assert ("ensemble" in rows(result)) == bool(passes)
    assert sum(row.seconds for row in result.rows if row.name == "ensemble") == pytest.approx(seconds)
    assert result.seconds - plain.seconds == pytest.approx(seconds), "after the rounds, before the labels"
    with store.publish(graph.ensemble.path, graph.ensemble.description):
        pass
    assert "ensemble" not in rows(worked_out(config, found)), "it is done"


def test_no_more_nodes_are_planned_for_than_there_may_be(make_config, make_cluster):
    kinds = {"one": ("x.one", 3), "big": ("x.big", 3), "more": ("x.big", 3)}
    config = make_config(training__lanes=3, training__node_resource="big", labeling__node_resource="more")
    all_of_them, few = (worked_out(config, make_cluster(limit, **kinds)) for limit in (9, 3))
    assert str(all_of_them.cluster.resources()) == "9 nodes, 408 CPUs, 51 GPUs"
    assert str(few.cluster.resources()) == "3 nodes, 192 CPUs, 24 GPUs", "none of those without work"


def test_a_consensus_pass_is_paid_with_its_answers_and_trainings(make_config, make_cluster):
    measured, found = Measured(expert=100.0, student=50.0, members=1000.0, alone=500.0), make_cluster(big=("x.big", 1))
    plain = rows(worked_out(make_config(), found, measured))
    config = make_config(consensus={"passes": 1, "anchor": 0.5, "fraction": 0.4})
    more = rows(worked_out(config, found, measured))
    assert "consensus" not in plain
    prompts = 100 + config.data.sizes.easy_validation
    answered = prompts * 50 * 2 / 1000
    assert more["consensus"].seconds == pytest.approx(2 * answered), "by the bases, too"
    alone = make_config(consensus={"passes": 1, "anchor": 0.5, "judge": "none"})
    assert rows(worked_out(alone, found, measured))["consensus"].seconds == pytest.approx(answered)
    kept = 1 + 0.4 * 100 / config.data.sizes.easy_train
    assert more["rounds"].seconds == pytest.approx((1 + kept) * plain["rounds"].seconds)
    assert more["evaluation"].seconds > plain["evaluation"].seconds, "the ensemble before the pass, too"
    searched = rows(worked_out(make_config(boosting={"rounds": 2, "anchor": "auto"}), found, measured))
    assert searched["consensus"].seconds == pytest.approx(9 * prompts * 50 * 2 / 1000)
