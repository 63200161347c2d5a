"""How fast a worker trains and an actor decodes: from the work of a token and a processor's peak, or from a run. Pure.

A model of time has one line of reasoning for each kind of work and a factor that says how much of the peak is reached;
the factors are the table's (`hardware.Assumptions`). Where a finished run was measured, its speeds take their place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from ensemw2s.config.systems import ENSEMW2S, EXPERT_SINGLE
from ensemw2s.costs.hardware import Assumptions, Processor
from ensemw2s.costs.memory import Members
from ensemw2s.costs.shapes import Shape
from ensemw2s.errors import ArtifactError, ConfigError
from ensemw2s.evaluation.records import RESULTS, RunResults, SystemCost
from ensemw2s.training.records import TRAINED, TrainRecord

ABOUT = 0.1
"""Models whose trained weights differ by no more than this share train equally fast."""


@dataclass(frozen=True)
class Share:
    """The part of a processor that a worker or an actor has.

    Attributes:
        flops: Operations a second, of the precision that is used.
        bytes_a_second: Of its memory.
        width: Bytes of a weight.
    """

    flops: float
    bytes_a_second: float
    width: int


def share_of(processor: Processor, *, width: int, parts: float) -> Share:
    """Args: the processor; bytes of a weight; how many of it, or what part of one."""
    peak = processor.bf16_tflops if width == 2 and processor.bf16_tflops else processor.fp32_tflops
    return Share(peak * 1e12 * parts, processor.gb_per_second * 1e9 * parts, width)


def training_flops(shape: Shape, adapters: int, *, checkpointing: bool) -> int:
    """Operations of a trained token, of matrix products alone (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).

    With M weights that are multiplied: forward 2 M, backward 2 M for the activations and 2 M for the weights. Adapters
    leave out the last for all weights but their own A: 4 M + 6 A. Checkpointing repeats the forward pass. Attention's
    products with the context are left out: for contexts shorter than a few times the width they are few.
    """
    forward = 2 * (shape.multiplied + adapters)
    backward = 2 * shape.multiplied + 4 * adapters if adapters else 4 * shape.multiplied
    return forward * (2 if checkpointing else 1) + backward


def training_rate(shape: Shape, adapters: int, share: Share, assumed: Assumptions, *, checkpointing: bool) -> float:
    """Tokens a second of one worker."""
    return share.flops * assumed.training_mfu / training_flops(shape, adapters, checkpointing=checkpointing)


def reading_rate(voters: Sequence[Members], share: Share, assumed: Assumptions) -> float:
    """Tokens a second that an actor reads of prompts, or scores, with all members."""
    return share.flops * assumed.reading_mfu / sum(2 * v.members * v.shape.multiplied for v in voters)


def decoding_rate(
    voters: Sequence[Members], share: Share, assumed: Assumptions, *, slots: int, context: float
) -> float:
    """Tokens a second of one actor with all slots at work; one token of all members is one.

    A step reads the weights once (of members that share a base, once for all) and each slot's cache, or is held up by
    its arithmetic; beside that it starts every layer's operations.

    Args:
        voters: Who decodes together.
        share: The actor's part of the processor.
        assumed: How much of it is reached.
        slots: Prompts at a time.
        context: Mean tokens that a slot looks back at.
    """
    seconds = 0.0
    for v in voters:
        passes = 1 if v.shared else v.members
        cache = v.members * slots * context * 2 * v.shape.layers * v.shape.keys
        read = share.width * (passes * v.shape.multiplied + cache)
        work = 2 * v.members * slots * v.shape.multiplied
        busy = max(
            read / (share.bytes_a_second * assumed.decoding_bandwidth), work / (share.flops * assumed.reading_mfu)
        )
        seconds += busy + passes * v.shape.layers * assumed.seconds_a_layer
    return slots / seconds


@dataclass(frozen=True)
class Measured:
    """Speeds of a finished run; those that it did not measure are None.

    Attributes:
        expert: Tokens a second that a worker trained of an expert.
        student: The same of a student.
        members: Tokens a second that an actor decoded with the ensemble, each member's counted.
        alone: Tokens a second that an actor decoded with one expert.
        trained: Tokens a second that a worker trained of any model, by the number of its trained weights.
    """

    expert: float | None = None
    student: float | None = None
    members: float | None = None
    alone: float | None = None
    trained: Mapping[int, float] = field(default_factory=dict)

    def of_size(self, weights: int) -> float | None:
        """Tokens a second of a training of about so many weights; None: there was none."""
        near = min(self.trained, key=lambda size: abs(size - weights), default=None)
        return None if near is None or abs(near - weights) > ABOUT * weights else self.trained[near]


def read_measured(run: Path) -> Measured:
    """Reads the speeds of a run from its train.json files and its results.json.

    Raises:
        ArtifactError: If results.json is damaged.
        ConfigError: If there is no such run, or it is not finished.
    """
    if not (run / RESULTS).exists():
        raise ConfigError(f"--measured {run}: there is no results.json, which a finished run has")
    results = RunResults.read(run / RESULTS)
    return Measured(
        expert=_trained(run, "rounds/*/experts/*"),
        student=_trained(run, "students/*"),
        members=_decoded(results.cost(ENSEMW2S)),
        alone=_decoded(results.cost(EXPERT_SINGLE)),
    )


def trained_in(storage: Path) -> dict[int, float]:
    """Speeds of all finished trainings below a storage: weights that were trained → tokens a second of a worker.

    What cannot be read is skipped: it is a hint, and nothing depends on it.
    """
    rates: dict[int, list[float]] = {}
    for pattern in ("cache/*", "*/rounds/*/experts/*", "*/students/*"):
        for path in sorted(storage.glob(f"{pattern}/{TRAINED}")):
            with suppress(ArtifactError, OSError):
                record = TrainRecord.read(path.parent)
                if record.seconds:
                    rate = record.tokens_trained / record.seconds / record.workers
                    rates.setdefault(record.trained_parameters, []).append(rate)
    return {size: median(found) for size, found in rates.items()}


def _trained(run: Path, pattern: str) -> float | None:
    """Tokens per second and worker, the median of the models that the pattern finds."""
    records = [TrainRecord.read(path.parent) for path in sorted(run.glob(f"{pattern}/{TRAINED}"))]
    rates = [record.tokens_trained / record.seconds / record.workers for record in records if record.seconds]
    return median(rates) if rates else None


def _decoded(cost: SystemCost | None) -> float | None:
    return cost.tokens_decoded / cost.decode_seconds if cost is not None and cost.decode_seconds else None
