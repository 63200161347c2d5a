"""Where trainings and actors go, and what a refusal says."""

import re

import pytest

from ensemw2s.costs import needs
from ensemw2s.costs.memory import GIB
from ensemw2s.errors import ResourceError
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.plan import lay_out
from ensemw2s.pipeline.survey import survey


def prepared(config):
    graph = build_graph(config)
    sizes = needs.shapes(graph)
    plan = lay_out(graph, survey(graph), {name: s.parameters for name, s in sizes.items()})
    return graph, needs.jobs(graph, plan), sizes


def test_every_training_of_the_plan_is_a_job(make_config):
    _, todo, _ = prepared(make_config())
    assert [(job.part, job.name, job.steps) for job in todo] == [
        ("rounds", "rounds/1/experts/0", 80),
        ("rounds", "rounds/2/experts/0", 80),
        ("baselines", "baselines/bagging/0", 80),
        ("baselines", "baselines/bagging/1", 80),
        ("students", "students/student_ensemw2s", 105),
    ]


def test_what_fits_goes_to_the_cheapest_node_that_holds_it(make_config, make_cluster):
    graph, todo, sizes = prepared(make_config())
    found = make_cluster(big=("x.big", 1), one=("x.one", 2), cpu=("x.cpu", 1))
    experts, all_of_them = (needs.place_trainings(graph, jobs, sizes, found) for jobs in (todo[:4], todo))
    assert [(need.name, need.node.kind) for need in experts] == [("experts", "x.one")]
    assert [(need.name, need.node.kind) for need in all_of_them] == [("experts", "x.big"), ("students", "x.big")]


def test_peaks_of_all_zero_stages_stand_beside_the_one_that_is_asked_for(make_config, make_cluster):
    graph, todo, sizes = prepared(make_config(models__strong__lora=None, training__workers=4, training__zero_stage=2))
    need = needs.place_trainings(graph, todo, sizes, make_cluster(big=("x.big", 1)))[-1]
    assert need.stage == 2
    assert need.stages[need.stage] == need.memory.peak
    assert list(need.stages[1:]) == sorted(need.stages[1:], reverse=True)


def test_a_training_that_cannot_fit_is_refused_with_bytes_and_the_nearest_that_does(make_config, make_cluster):
    graph, todo, sizes = prepared(make_config(models__strong__lora=None))
    with pytest.raises(ResourceError) as caught:
        needs.place_trainings(graph, todo, sizes, make_cluster(one=("x.one", 4)))
    text = str(caught.value)
    numbers = re.match(r"students need ([\d.]+) GiB \(.*optimizer.*\), but have 15\.0 GiB on small of x\.one", text)
    assert numbers, text
    assert float(numbers[1]) > 100
    assert "(node type one)" in text
    advice = re.findall(r"--set '([^']+)'", text)
    assert advice, text
    changes = {}
    for words in advice:
        key, value = words.split("=", 1)
        changes[key.replace(".", "__")] = {"{rank: 16}": {"rank": 16}, "true": True}.get(value, value)
    graph, todo, sizes = prepared(make_config(**{"models__strong__lora": None, **changes}))
    assert needs.place_trainings(graph, todo, sizes, make_cluster(one=("x.one", 4))), "what is advised fits"


def test_what_no_setting_makes_fit_is_told_where_it_fits(make_config, make_cluster):
    config = make_config(training__precision="fp32", models__strong__lora=None, training__gradient_checkpointing=True)
    graph, todo, sizes = prepared(config)
    with pytest.raises(ResourceError, match=r"no setting makes them fit there$"):
        needs.place_trainings(graph, todo, sizes, make_cluster(one=("x.one", 1)))
    graph, todo, sizes = prepared(make_config(training__precision="fp32"))
    with pytest.raises(ResourceError, match=r"no setting makes them fit there; as they are they fit on x\.big"):
        needs.place_trainings(graph, todo, sizes, make_cluster(one=("x.one", 1)))


def test_actors_are_refused_with_a_batch_that_fits(make_config, make_cluster):
    config = make_config(labeling__batch_size=256)
    graph, _, sizes = prepared(config)
    with pytest.raises(
        ResourceError, match=r"actors .* need .*cache.*nearest that fits: --set 'labeling\.batch_size=(\d+)'"
    ):
        needs.place_actors(graph, sizes, make_cluster(one=("x.one", 1)))


def test_evaluation_holds_every_weak_system_at_a_time_and_labelling_one(make_config, make_cluster):
    graph, _, sizes = prepared(make_config())
    found = {need.name: need for need in needs.place_actors(graph, sizes, make_cluster(one=("x.one", 1)))}
    label, weak = found["actors (labelling)"].memory.device, found["actors (evaluation of weak systems)"].memory.device
    assert weak["cache"] == 2 * label["cache"], "bagging's and the ensemble's"
    assert weak["weights"] < 1.1 * label["weights"], "one base for all adapters"
    full = make_config(models__weak=[{"base": str(graph.weak[0].path)}])
    graph, _, sizes = prepared(full)
    found = {need.name: need for need in needs.place_actors(graph, sizes, make_cluster(big=("x.big", 1)))}
    label, weak = found["actors (labelling)"].memory.device, found["actors (evaluation of weak systems)"].memory.device
    assert weak["weights"] == 2 * label["weights"] == 4 * 2 * sizes["weak-0"].parameters


def test_more_gpus_help_actors_that_have_several_models(make_config, make_cluster, tmp_path):
    found = make_cluster(four=("x.four", 2))
    shared = make_config(labeling__gpus_per_actor=4, evaluation__systems=["ensemw2s"])
    graph, _, sizes = prepared(shared)
    assert {need.available for need in needs.place_actors(graph, sizes, found)} == {15 * GIB}
    base = {"base": str(tmp_path / "strong")}
    full = make_config(models__weak=[base], models__strong=base, evaluation__systems=["ensemw2s"])
    graph, _, sizes = prepared(full)
    with pytest.raises(ResourceError, match=r"nearest that fits: --set 'labeling\.gpus_per_actor=2'"):
        needs.place_actors(graph, sizes, found)


def test_a_gpu_without_bfloat16_holds_float32(make_config, make_cluster):
    graph, todo, sizes = prepared(make_config())
    [need] = needs.place_trainings(graph, todo[:1], sizes, make_cluster(old=("x.old", 1)))
    assert need.memory.loading == 4 * (sizes["w0"].parameters + sizes["w0"].adapters(graph.weak[0].lora))


def test_workers_without_gpus_have_their_share_of_the_machine(make_config, make_cluster):
    config = make_config(training__gpus_per_worker=0, labeling__gpus_per_actor=0, training__cpus_per_worker=2)
    graph, todo, sizes = prepared(config)
    found = make_cluster(cpu=("x.cpu", 1))
    with pytest.raises(ResourceError, match=r"experts need .* but have 4\.0 GiB on x\.cpu"):
        needs.place_trainings(graph, todo[:1], sizes, found)
    assert needs.available(found.workers[0], found.prices, cpus=4, gpus=0) == 8 * GIB


def test_larger_machines_are_of_the_same_cloud_and_suit_the_process(make_config, make_cluster):
    found = make_cluster(one=("x.one", 1))
    [one] = found.workers

    def larger(config, gib=15 * GIB, **elsewhere):
        instances = {
            kind: instance.model_copy(update={"cloud": elsewhere.get(kind.removeprefix("x."))})
            for kind, instance in found.prices.instances.items()
        }
        prices = found.prices.model_copy(update={"instances": instances})
        return needs._larger(prices, one, config.training, lambda node: node.instance.memory_gib * GIB > gib)

    gpus, none = make_config(), make_config(training__gpus_per_worker=0)
    assert larger(gpus) == "x.old"
    assert larger(gpus, old="other") == "x.one"
    assert larger(gpus, old="other", one="other", four="other", big="other") is None
    assert larger(make_config(training__gpus_per_worker=4)) == "x.four"
    assert larger(make_config(training__cpus_per_worker=60)) == "x.big"
    assert (larger(none), larger(none, gib=0)) == ("x.head", "x.cpu"), "what asks for no GPU gets none"


def test_advice_for_actors_fits_all_that_they_do(make_config, make_cluster):
    """Here labelling needs less than evaluation: a batch that suits the one alone would be refused again."""
    found = make_cluster(one=("x.one", 1))
    graph, _, sizes = prepared(make_config(labeling__batch_size=1024))
    with pytest.raises(ResourceError) as caught:
        needs.place_actors(graph, sizes, found)
    size = int(re.search(r"labeling\.batch_size=(\d+)'", str(caught.value))[1])
    graph, _, sizes = prepared(make_config(labeling__batch_size=size))
    assert needs.place_actors(graph, sizes, found)


def test_no_example_is_longer_than_the_context_of_its_model(make_config, make_cluster):
    """The bases here have 2048 tokens."""
    [node] = make_cluster(big=("x.big", 1)).workers

    def sizes_of(**changes):
        config = make_config(**changes)
        graph, todo, sizes = prepared(config)
        training = needs.training_of(todo[0], config, sizes[todo[0].base.name], node)
        crowds = needs.label_crowds(graph, sizes).values()
        return training.tokens, training.answer, [crowd.memory(config, node).device["cache"] for crowd in crowds]

    assert sizes_of()[:2] == (256, 128)
    long = sizes_of(data__max_prompt_tokens=3000, data__max_answer_tokens=2500)
    assert long[:2] == (2048, 2048)
    assert long[2] == sizes_of(data__max_prompt_tokens=1920)[2], "1920 + 128 are all that there is"
