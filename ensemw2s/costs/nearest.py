"""The nearest settings that fit: settings that are too large go in, the smallest change that makes them fit comes out.

Pure, so that what a refusal advises can be tested: all combinations of a few changes are looked at, those of fewer and
lesser changes first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from ensemw2s.config import Lora
from ensemw2s.costs.memory import Training

T = TypeVar("T")
Values = Mapping[str, int | str]
"""Settings by name, with their other values."""
Change = tuple[str, Values]
"""What a user writes, and what it changes; no words: nothing."""

LORA = Lora(rank=16)
"""Adapters that are advised where all weights are trained."""


def smallest(changes: Sequence[Sequence[Change]], fits: Callable[[Values], bool]) -> list[str] | None:
    """The first combination of changes that fits, the fewest first, then those that stand first.

    Args:
        changes: For each setting its values, the smallest change first; settings in the order in which they are
            preferred.
        fits: Whether values, by name, fit.

    Returns:
        The words of the changes; None if nothing fits.
    """
    nothing: Change = ("", {})
    choices = [[nothing, *values] for values in changes]
    ranked = []
    for places in itertools.product(*(range(len(values)) for values in choices)):
        changed = tuple(i for i, place in enumerate(places) if place)
        ranked.append((len(changed), changed, tuple(places[i] for i in changed), places))
    for *_, places in sorted(ranked):
        chosen = [values[place] for values, place in zip(choices, places, strict=True)]
        if fits({key: value for _, changed in chosen for key, value in changed.items()}):
            return [words for words, _ in chosen if words]
    return None


def training_changes(t: Training, section: str, base: str, workers: Iterable[int]) -> list[list[Change]]:
    """What may be changed of a training, in the order of least change: how it is computed before what is computed.

    Args:
        t: The training as it is.
        section: Where its recipe is in the config: `expert` or `student`.
        base: Where its base is.
        workers: Numbers of workers that the cluster has room for.
    """
    halves = [t.micro >> k for k in range(1, t.micro.bit_length())]
    stages = [stage for stage in (1, 2, 3) if stage > t.zero_stage]
    adapters = t.shape.adapters(LORA)
    return [
        [(f"{section}.micro_batch_size={n}", {"most": n}) for n in halves],
        [] if t.checkpointing else [("training.gradient_checkpointing=true", {"checkpointing": True})],
        [(f"training.zero_stage={stage}", {"zero_stage": stage}) for stage in stages],
        [(f"training.workers={n}", {"workers": n}) for n in sorted(workers) if n > t.workers],
        [
            (f"training.offload={kind}", {"offload": kind})
            for kind in ("optimizer", "parameters")
            if t.offload == "none" or (t.offload, kind) == ("optimizer", "parameters")
        ],
        [] if t.adapters else [(f"{base}.lora={{rank: {LORA.rank}}}", {"adapters": adapters})],
    ]


def changed_training(t: Training, values: Values) -> Training | None:
    """A training with other values; None where they contradict each other."""
    other = replace(t, **values)  # type: ignore[arg-type]  # fields of a training, from `training_changes`
    least = {"none": 0, "optimizer": 1, "parameters": 3}[other.offload]
    return other if other.zero_stage >= least else None
