"""Steps of fixed shapes, on a CPU with a record that does nothing, and on a GPU with CUDA graphs."""

import contextlib
from collections.abc import Callable, Iterator

import pytest
import torch

from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.forward import RowGroup
from ensemw2s.ensemble.graphs import SHORTEST, DecodeSteps, captured
from ensemw2s.ensemble.members import load_members
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.requests import Request

CPU = torch.device("cpu")
KINDS = ["stacked", "adapters", "learned positions", "sliding window"]


@pytest.fixture
def make_members(make_model, make_other, adapter_folders) -> Callable[[str], list]:
    def make(kind: str, device: str = "cpu") -> list:
        if kind == "stacked":
            return [make_model(seed, context=512).to(device) for seed in range(3)]
        if kind == "adapters":
            return load_members(adapter_folders, device=device)
        return [make_other(kind, seed) for seed in range(2)]

    return make


def recording(engine: Engine, records: list, *, gain: float = 0.5, patience: int = 0) -> DecodeSteps:
    """Gives an engine's group steps whose record is the pass itself, and costs so much of it."""
    [group] = engine.groups
    assert isinstance(group, RowGroup)
    made: list = []

    def record(run, device):
        records.append(run)
        made.append(lambda: run())
        return made[-1]

    group.steps = DecodeSteps(
        group.cache,
        group.one_token,
        CPU,
        record,
        cost=lambda run, _: gain if run in made else 1.0,
        patience=patience,
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_a_record_that_is_slower_or_cannot_be_made_is_not_used(make_members, caplog):
    model = EnsembleForCausalLM(make_members("stacked"), [0.5, 0.3, 0.2])
    expected = answers(Engine(model, slots=3), requests())
    engine, records = Engine(model, slots=3), []
    steps = recording(engine, records, gain=2.0)
    assert answers(engine, requests()) == expected
    assert records
    assert not steps.recorded

    tried = []

    def impossible(run, device):
        tried.append(run)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    [group] = engine.groups
    group.steps = DecodeSteps(group.cache, group.one_token, CPU, impossible, cost=lambda *_: 1.0, patience=0)
    assert answers(engine, requests()) == expected
    assert not group.steps.recorded
    assert len(tried) == 1, "tried again where it cannot be done"
    [warning] = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.endswith("operation not permitted when stream is capturing")


def test_a_shape_is_recorded_when_it_has_come_up_often(make_members):
    model = EnsembleForCausalLM(make_members("stacked"), [0.5, 0.3, 0.2])
    engine, records = Engine(model, slots=2), []
    recording(engine, records, patience=16)
    answers(engine, [Request([5, 6, 7], 14)])
    assert not records
    answers(engine, [Request([5, 6, 7], 14)])
    assert len(records) == 1


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
    model = EnsembleForCausalLM(make_members(kind, "cuda"), [0.5, 0.3, 0.2])
    plain = Engine(model, slots=5, chunk=16)
    for group in plain.groups:
        group.steps = None
    expected = answers(plain, requests())
    engine = Engine(model, slots=5, chunk=16)
    [group] = engine.groups
    group.steps = DecodeSteps(group.cache, group.one_token, group.device, patience=0)
    assert answers(engine, requests()) == expected
    assert group.steps.recorded, "no step was worth recording"


@pytest.mark.parametrize("fails", ["in the pass", "at the end"])
def test_a_recording_that_fails_leaves_the_process_as_it_was(fails, monkeypatch):
    """With what PyTorch's own `torch.cuda.graph` does on a GPU: it sets its stream, and does not always set it back."""
    cuda = FakeCuda(fails)
    for name in (
        "device",
        "current_stream",
        "set_stream",
        "Stream",
        "stream",
        "CUDAGraph",
        "graph_pool_handle",
        "graph",
    ):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", cuda.end_pool, raising=False)

    def run() -> torch.Tensor:
        if fails == "in the pass" and cuda.current != "usual":
            cuda.passes += 1
            if cuda.passes > 2:  # those before it warm up
                raise RuntimeError("waits for the device")
        return torch.ones(1)

    with pytest.raises(RuntimeError, match=r"device|capture"):
        captured(run, torch.device("cuda:0"))
    assert cuda.current == "usual"
    assert cuda.ended == ["pool"]
    assert cuda.captured_on == ["aside"], "torch's own stream is one for all devices"


class FakeCuda:
    """As much of `torch.cuda` as `captured` uses."""

    def __init__(self, fails: str) -> None:
        self.fails, self.current, self.passes, self.ended, self.captured_on = fails, "usual", 0, [], []
        self.CUDAGraph, self.graph_pool_handle = object, lambda: "pool"

    def device(self, _) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def current_stream(self) -> "FakeStream":
        return FakeStream(self.current)

    def Stream(self) -> "FakeStream":
        return FakeStream("aside")

    def set_stream(self, stream: "FakeStream") -> None:
        self.current = stream.name

    @contextlib.contextmanager
    def stream(self, stream: "FakeStream") -> Iterator[None]:
        before, self.current = self.current, stream.name
        yield
        self.current = before

    @contextlib.contextmanager
    def graph(self, _, *, pool: str, stream: "FakeStream", capture_error_mode: str) -> Iterator[None]:
        self.current = stream.name
        self.captured_on.append(stream.name)
        yield
        raise RuntimeError("capture_end failed")

    def end_pool(self, _, pool: str) -> None:
        self.ended.append(pool)


class FakeStream:
    def __init__(self, name: str) -> None:
        self.name = name

    def wait_stream(self, _) -> None:
        pass
