"""How many bytes a training worker and a decoding actor take: sizes and settings in, bytes by purpose out. Pure.

Weights, gradients and optimizer follow DeepSpeed as `training.loop` sets it up and are held to what it allocates;
activations are a formula for decoders of the Llama kind (RMS norms, gated feed-forward part, attention that keeps no
scores), held to what torch keeps for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ensemw2s.costs.shapes import Shape
from ensemw2s.training.batches import Layout

GIB = 2**30

BUCKET = 500_000_000
"""Numbers in DeepSpeed's buffer for gradients on their way to other workers, allocated whole from ZeRO 1 on."""

LIVE = 1_000_000_000
"""Weights that ZeRO 3 gathers at a time, at most."""

GROWTH = 64
"""Places in the engine's cache are allocated in multiples of this (`ensemble.slots`)."""

CHUNK = 2048
"""Prompt tokens that the engine reads at a time (`ensemble.decoding`)."""

SCORED = 2**26
"""Log-probabilities that teacher forcing holds at a time, in float32 (`ensemble.score`)."""


LEARNT = 2**25
"""Logits that a loss has at a time (`models.head`)."""

WHOLE = 4096
"""Vocabularies below this have logits at all tokens in training (`models.head`)."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a process at its worst.

    Attributes:
        device: On the GPU (or the CPU where there is none), by purpose, while it works.
        loading: On the GPU while the model is loaded whole, before it is divided.
        host: In the machine's memory beside the GPU: what is offloaded.
    """

    device: dict[str, int]
    loading: int
    host: int = 0

    @property
    def peak(self) -> int:
        """The most that is taken of the GPU at a time."""
        return max(self.loading, sum(self.device.values()))


@dataclass(frozen=True)
class Training:
    """What decides how much a training worker takes.

    Attributes:
        shape: The model.
        adapters: Weights of its adapters; 0: all weights are trained.
        workers: Among which DeepSpeed divides.
        zero_stage: What is divided.
        offload: What lies in the machine's memory.
        width: Bytes of a weight: 4 in float32, 2 in bfloat16.
        checkpointing: Activations are computed a second time in place of being kept.
        batch: Examples of a step, over all workers.
        most: Examples of a forward pass, at most; None: a worker's whole share.
        tokens: Longest example, in tokens.
        answer: Of these, tokens that have a loss, at most.
        gpu: Whether it has one. A CPU has memory for what is written only, and nothing fills DeepSpeed's buffer.
    """

    shape: Shape
    adapters: int
    workers: int
    zero_stage: int
    offload: str
    width: int
    checkpointing: bool
    batch: int
    most: int | None
    tokens: int
    answer: int
    gpu: bool = True

    @property
    def micro(self) -> int:
        """Examples of a forward pass of one worker."""
        return Layout.of(batch_size=self.batch, micro_batch_size=self.most, world=self.workers, rank=0).micro

    @property
    def trained(self) -> int:
        """Weights that are trained."""
        return self.adapters or self.shape.parameters

    @property
    def held(self) -> int:
        """All weights."""
        return self.shape.parameters + self.adapters


def resting_bytes(t: Training) -> dict[str, int]:
    """What a worker holds between the end of a backward pass and the step, wherever it lies; by purpose.

    With N weights, T trained ones, W workers and w bytes a weight: w N of weights and w T of gradients; AdamW's two
    moments take 8 T and from ZeRO 1 on (in bfloat16 always) a float32 copy of the trained weights 4 T. Stage 1 divides
    the optimizer's part by W, stage 2 the gradients too, stage 3 the weights (Rajbhandari et al. 2020, arXiv
    1910.02054, figure 1); once they are reduced, DeepSpeed's stage 1 keeps no more gradients than stage 2.
    """
    share = math.ceil(t.trained / (t.workers if t.zero_stage else 1))
    weights = t.width * t.held
    copies = 4 * share if t.zero_stage or t.width == 2 else 0
    held = {
        "weights": math.ceil(weights / t.workers) if t.zero_stage == 3 else weights,
        "gradients": t.width * share,
        "optimizer": 8 * share + copies,
    }
    if t.offload != "none":  # gradients in float32, and a buffer in which weights or gradients are on their way
        held |= {"gradients": 0, "optimizer": held["optimizer"] + (4 + t.width) * share}
    return held


def training_memory(t: Training) -> Memory:
    """Bytes of one worker at its worst, from `resting_bytes` and what comes and goes.

    In the backward pass gradients are there whole up to ZeRO 1, beside DeepSpeed's buffer; ZeRO 3 gathers weights. A
    step has a float32 copy of the gradients and a temporary of AdamW more, when the activations are gone.
    """
    share = math.ceil(t.trained / (t.workers if t.zero_stage else 1))
    held, step, host = resting_bytes(t), 8 * share, 0
    buffers = t.width * (BUCKET if t.gpu else min(t.trained, BUCKET))
    if t.zero_stage == 0:
        buffers = t.width * min(t.trained, BUCKET) if t.workers > 1 else 0
    elif t.zero_stage == 1:
        held["gradients"] += t.width * t.trained
    else:
        held["gradients"] += t.width * min(t.shape.largest, t.trained)
    if t.offload != "none":
        host, step = held["optimizer"], 0
        held["optimizer"] = 0
    if t.zero_stage == 3:
        if t.offload == "parameters":
            host, held["weights"] = host + held["weights"], 0
        held["weights"] += t.width * min(t.held, LIVE)
    activations = activation_bytes(t)
    held["optimizer"] += max(0, step - activations)
    return Memory({**held, "buffers": buffers, "activations": activations}, loading=t.width * t.held, host=host)


def activation_bytes(t: Training) -> int:
    """What the backward pass needs of the forward pass, for one micro-batch of examples of the longest kind.

    A layer keeps for each token, in bytes: of each norm its input in float32 (4 h) and its output (w h; where its own
    weights are trained, also what these multiply); queries, keys, values and the attention's output; four times the
    feed-forward width. With checkpointing only the input of each layer, and one layer at a time. At the end see
    `head_bytes`.
    """
    s, w = t.shape, t.width
    norms = 2 * (4 * s.hidden + (1 if t.adapters else 2) * w * s.hidden)
    layer = norms + w * (2 * s.queries + 2 * s.keys) + 4 * w * s.feed_forward
    layers = s.layers * w * s.hidden + layer if t.checkpointing else s.layers * layer
    return t.micro * layers * t.tokens + head_bytes(t)


def head_bytes(t: Training) -> int:
    """What the output layer and the loss take of a micro-batch, in a vocabulary of V tokens.

    12 V for each token that has a loss, of as many at a time as have `LEARNT` logits: logits, their logarithmic softmax
    and its gradient, or float32 copies of them. ZeRO 3 makes logits once: where they are many, these and their gradient
    (w V each a token) come on top. Small vocabularies have both of the prompt's tokens, too.
    """
    vocabulary, learnt = t.shape.vocabulary, t.micro * t.answer
    part = min(learnt, max(1, LEARNT // vocabulary))
    once = 0
    if vocabulary < WHOLE:
        once = t.micro * t.tokens
    elif t.zero_stage == 3 and learnt > part:
        once = learnt
    return vocabulary * (2 * t.width * once + 12 * part)


def cache_bytes(shape: Shape, *, members: int, slots: int, length: int, width: int) -> int:
    """Bytes of the engine's keys and values, for `slots` prompts at a time of `length` tokens each."""
    places = math.ceil(length / GROWTH) * GROWTH
    return 2 * shape.layers * members * slots * places * shape.keys * width


@dataclass(frozen=True)
class Members:
    """Members of one shape that decode together.

    Attributes:
        shape: Sizes of each.
        members: How many there are.
        shared: Whether they are adapters on one base, which take one pass together.
    """

    shape: Shape
    members: int
    shared: bool


def decoding_memory(
    models: Sequence[tuple[Shape, int]],
    voters: Sequence[Members],
    *,
    slots: int,
    length: int,
    width: int,
) -> Memory:
    """Bytes of one actor.

    Args:
        models: Each full model that is in memory, with the weights of all adapters on it.
        voters: Who decodes with them; each keeps its own cache until others are loaded.
        slots: Prompts at a time (labeling.batch_size).
        length: Longest prompt and answer, in tokens.
        width: Bytes of a weight.
    """
    # the engine stacks the adapters of its members: they are there twice
    weights = sum(width * (shape.parameters + 2 * adapters) for shape, adapters in models)
    cache = sum(cache_bytes(v.shape, members=v.members, slots=slots, length=length, width=width) for v in voters)
    reading = max(
        width * max(v.members * CHUNK, slots * length) * (6 * v.shape.hidden + 3 * v.shape.feed_forward) for v in voters
    )
    logits = max(4 * 3 * min(SCORED, (v.members + 1) * slots * length * v.shape.vocabulary) for v in voters)
    return Memory({"weights": weights, "cache": cache, "activations": reading + logits}, loading=weights)
