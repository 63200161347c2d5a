"""Steps of fixed shapes, on a CPU with a record that does nothing, and on a GPU with CUDA graphs."""

from collections.abc import Callable

import pytest
import torch

from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.forward import RowGroup
from ensemw2s.ensemble.graphs import SHORTEST, DecodeSteps
from ensemw2s.ensemble.members import load_members
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.requests import Request

CPU = torch.device("cpu")
KINDS = ["stacked", "adapters", "learned positions", "sliding window"]


@pytest.fixture
def make_members(make_model, make_other, adapter_folders) -> Callable[[str], list]:
    def make(kind: str) -> list:
        if kind == "stacked":
            return [make_model(seed, context=512) for seed in range(3)]
        if kind == "adapters":
            return load_members(adapter_folders)
        return [make_other(kind, seed) for seed in range(2)]

    return make


def recording(engine: Engine, records: list, *, gain: float = 0.5) -> DecodeSteps:
    """Gives an engine's group steps whose record is the pass itself, and costs so much of it."""
    [group] = engine.groups
    assert isinstance(group, RowGroup)

    def record(run, device):
        records.append(run)
        return lambda: run()

    group.steps = DecodeSteps(
        group.cache, group.one_token, CPU, record, cost=lambda run, _: 1.0 if run in records else gain
    )
    return group.steps


def requests(longest: int = 20, context: int = 64) -> list[Request]:
    generator = torch.Generator().manual_seed(0)
    lengths = [1, 9, 30, 2, 17, 5, 40, 3, 12, 7, 25]
    return [
        Request(torch.randint(3, 64, (n,), generator=generator).tolist(), min(3 + i * 5 % longest, context - n))
        for i, n in enumerate(lengths)
    ]


def answers(engine: Engine, wanted: list[Request]) -> list[list[int]]:
    found = dict(engine.run(wanted))
    return [found[i].token_ids for i in range(len(wanted))]


@pytest.mark.parametrize("kind", KINDS)
def test_steps_of_fixed_shapes_give_the_same_answers(kind, make_members):
    model = EnsembleForCausalLM(make_members(kind), [0.5, 0.3, 0.2][: 3 if kind in KINDS[:2] else 2])
    plain = Engine(model, slots=5, chunk=16)
    expected = answers(plain, requests())
    engine, records = Engine(model, slots=5, chunk=16), []
    steps = recording(engine, records)
    assert answers(engine, requests()) == expected
    assert {slots for slots, _ in steps.recorded} <= {1, 2, 4, 5}
    assert len(steps.recorded) >= 3


def test_answers_that_grow_out_of_the_cache_are_recorded_anew(make_members):
    model = EnsembleForCausalLM(make_members("stacked"), [0.5, 0.3, 0.2])
    first, second = [Request([5, 6, 7], 12)], [Request([5, 6, 7], 200), Request([9], 8)]
    plain = Engine(model, slots=2)
    expected = [answers(plain, first), answers(plain, second), answers(plain, first)]
    engine, records = Engine(model, slots=2), []
    steps = recording(engine, records)
    found = [answers(engine, first)]
    before = len(records)
    found += [answers(engine, second), answers(engine, first)]
    assert found == expected
    assert len(records) > before
    assert {length for _, length in steps.recorded} == {SHORTEST, 2 * SHORTEST}


def test_a_record_that_is_slower_or_cannot_be_made_is_not_used(make_members):
    model = EnsembleForCausalLM(make_members("stacked"), [0.5, 0.3, 0.2])
    expected = answers(Engine(model, slots=3), requests())
    engine, records = Engine(model, slots=3), []
    steps = recording(engine, records, gain=2.0)
    assert answers(engine, requests()) == expected
    assert records
    assert not steps.recorded

    def impossible(run, device):
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    [group] = engine.groups
    group.steps = DecodeSteps(group.cache, group.one_token, CPU, impossible, cost=lambda *_: 1.0)
    assert answers(engine, requests()) == expected
    assert not group.steps.recorded


def test_requests_that_are_cancelled_beside_others_change_no_answer(make_members):
    """Slots beyond those at work are written to, where nobody reads."""
    model = EnsembleForCausalLM(make_members("stacked"), [0.5, 0.3, 0.2])
    expected = answers(Engine(model, slots=4), requests()[:4])
    engine = Engine(model, slots=4, chunk=8)
    recording(engine, [])
    keys = {engine.submit(request): i for i, request in enumerate(requests()[:4])}
    found: dict[int, list[int]] = {}
    late = engine.submit(Request([4] * 50, 30))
    for step in range(200):
        if step == 9:
            engine.cancel(late)
        for update in engine.step():
            if update.generation is not None:
                found[keys[update.key]] = update.generation.token_ids
        if not engine.busy:
            break
    assert [found[i] for i in range(4)] == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["stacked", "adapters"])
def test_cuda_graphs_give_the_same_answers(kind, make_members):
    model = EnsembleForCausalLM([member.cuda() for member in make_members(kind)], [0.5, 0.3, 0.2])
    plain = Engine(model, slots=5, chunk=16)
    for group in plain.groups:
        group.steps = None
    expected = answers(plain, requests())
    engine = Engine(model, slots=5, chunk=16)
    assert answers(engine, requests()) == expected
    [group] = engine.groups
    assert group.steps.recorded, "no step was worth recording"
