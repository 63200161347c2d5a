"""One network that is several members at once: row by row, its layers use the weights of the row's member.

Members that share a base differ in adapters, which are stacked and applied by one batched product; small members of one
architecture are stacked whole. Either way the network is transformers' own, with the layers that have weights of a
member's own replaced, so that it stays right for every architecture that is built from such layers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


class NotStackable(Exception):
    """Raised with the reason why members cannot share a forward pass."""


@dataclass
class Active:
    """Which of the members the rows of the coming forward pass belong to, in equal parts and in their order."""

    members: slice
    count: int

    def of(self, stacked: torch.Tensor) -> torch.Tensor:
        """The weights of these members, `[count, ...]`."""
        return stacked if self.count == stacked.shape[0] else stacked[self.members]


class _Layer(nn.Module):
    """A layer with weights of each member's own."""

    def __init__(self, active: Active) -> None:
        super().__init__()
        self.active = active

    def parts(self, rows: torch.Tensor) -> torch.Tensor:
        """`[members × batch, ..., width]` as `[members, batch × ..., width]`."""
        return rows.reshape(self.active.count, -1, rows.shape[-1])


class FewRowsLinear(nn.Module):
    """A linear layer on a CPU: for a handful of rows the product is formed from the weights' side.

    Matrix products of 2 to 16 rows in float32 take up to 2.7 times as long as those of the transposed problem, whose
    long side is the one that libraries divide among threads (docs/benchmarks.md has the measurement).
    """

    MOST = 16

    def __init__(self, linear: nn.Linear) -> None:
        """Args: the layer, whose weights are shared."""
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if not 1 < len(rows) <= self.MOST:
            return F.linear(x, self.weight, self.bias)
        out = torch.mm(self.weight, rows.T).T.contiguous()
        if self.bias is not None:
            out += self.bias
        return out.view(*x.shape[:-1], -1)


class AdaptedLinear(_Layer):
    """A linear layer that all members share, plus each member's low-rank product."""

    def __init__(self, base: nn.Module, down: torch.Tensor, up: torch.Tensor, active: Active) -> None:
        """Args: the shared layer; `[members, in, rank]`; `[members, rank, out]`, scaled; the members at work."""
        super().__init__(active)
        self.base, self.down, self.up = base, down, up

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.base(x)
        low = torch.bmm(self.parts(x), self.active.of(self.down))
        return self.parts(out).baddbmm_(low, self.active.of(self.up)).view(out.shape)


class StackedLinear(_Layer):
    """Linear layers of the same shape, one per member."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, active: Active) -> None:
        """Args: `[members, in, out]`, `[members, 1, out]`, the members at work."""
        super().__init__(active)
        self.weight, self.bias = nn.Parameter(weight, requires_grad=False), bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, weight = self.parts(x), self.active.of(self.weight)
        out = torch.bmm(rows, weight) if self.bias is None else torch.baddbmm(self.active.of(self.bias), rows, weight)
        return out.view(*x.shape[:-1], -1)


class StackedEmbedding(_Layer):
    """Embeddings of the same shape, one per member."""

    def __init__(self, weight: torch.Tensor, active: Active) -> None:
        """Args: `[members, tokens, width]`, the members at work."""
        super().__init__(active)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.first = torch.arange(len(weight), device=weight.device).unsqueeze(-1) * weight.shape[1]

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        places = ids.reshape(self.active.count, -1) + self.active.of(self.first)
        return F.embedding(places, self.weight.flatten(0, 1)).view(*ids.shape, -1)


class StackedNorm(_Layer):
    """Normalisations whose weights multiply (and add) element by element, one weight per row."""

    def __init__(self, norm: nn.Module, weights: dict[str, torch.Tensor], active: Active) -> None:
        """Args: a copy of a member's module without its weights; `[members, 1, width]` each; the members at work."""
        super().__init__(active)
        self.norm, self.weights = norm, weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.parts(x)
        weights = {name: self.active.of(weight) for name, weight in self.weights.items()}
        if isinstance(self.norm, nn.LayerNorm):
            out = F.layer_norm(rows, rows.shape[-1:], eps=self.norm.eps)
        elif isinstance(self.norm, RootMeanSquare):
            out = F.rms_norm(rows, rows.shape[-1:], eps=self.norm.eps)
        else:  # the architecture's own, with one weight per row
            for name, weight in weights.items():
                setattr(self.norm, name, weight)
            return self.norm(rows).view(x.shape)
        if "weight" in weights:
            out = out * weights["weight"]
        return (out + weights["bias"] if "bias" in weights else out).view(x.shape)


class RootMeanSquare(nn.Module):
    """An architecture's root-mean-square norm as the one operation that it is."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        """Args: the norm's weight, which is shared; what keeps its root from 0."""
        super().__init__()
        self.weight, self.eps = weight, eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, self.weight.shape, eps=self.eps) * self.weight

    @classmethod
    @torch.no_grad()
    def like(cls, norm: nn.Module) -> RootMeanSquare | None:
        """The same as a norm of any architecture, if it does the same to a few random rows; else None."""
        eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
        if not _is_rms_norm(norm) or not isinstance(eps, float):
            return None
        weight = norm.weight
        assert isinstance(weight, nn.Parameter)
        same = cls(weight, eps)
        rows = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
        return same if torch.allclose(norm(rows), same(rows), rtol=1e-5, atol=1e-6) else None


def shared_base(bases: PreTrainedModel, adapters: Sequence[str | None], active: Active) -> PreTrainedModel:
    """One base with several members' adapters.

    Args:
        bases: A model with PEFT's LoRA layers in it, as `PeftModel.get_base_model` gives it, or without any.
        adapters: Each member's adapters by name; None: the base as it is.
        active: Filled in before each forward pass.

    Returns:
        A network that takes rows ordered by member; it shares the base's weights.

    Raises:
        NotStackable: If adapters are of a kind that is not a low-rank product added to a linear layer.
    """

    def replace(module: nn.Module) -> nn.Module | None:
        if not isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            return RootMeanSquare.like(module) or _for_few_rows(module)
        if type(module) is not LoraLinear or not isinstance(module.base_layer, nn.Linear | Conv1D):
            raise NotStackable(f"adapters of kind {type(module).__name__}")
        names = [name if name in module.lora_A else None for name in adapters]
        if any(name in module.lora_variant or module.lora_bias.get(name) for name in names if name):
            raise NotStackable("adapters of another kind than plain LoRA")
        if module.merged:
            raise NotStackable("merged adapters")
        base = _for_few_rows(module.base_layer) or module.base_layer
        return AdaptedLinear(base, *_low_rank(module, names), active) if any(names) else base

    return _rebuilt(bases, replace)


def stacked(networks: Sequence[PreTrainedModel], active: Active) -> PreTrainedModel:
    """Several models of one architecture as one; their weights become views of the stacked ones, none is held twice.

    Args:
        networks: Models of the same class and config, one a member.
        active: Filled in before each forward pass.

    Returns:
        A network that takes rows ordered by member.

    Raises:
        NotStackable: If the models differ, or have weights in layers of a kind that is not known here.
    """
    first, others = networks[0], networks[1:]
    for other in others:
        if type(other) is not type(first) or essence(other) != essence(first):
            raise NotStackable("members of different architectures")
    plan = {name: _own(module) for name, module in first.named_modules()}
    for name, own in plan.items():
        if own and not _known(first.get_submodule(name)):
            raise NotStackable(f"layers of kind {type(first.get_submodule(name)).__name__}")
    same = {id(p): [p, *(other.get_parameter(name) for other in others)] for name, p in first.named_parameters()}
    stacks: dict[int, torch.Tensor] = {}

    def stack(parameter: nn.Parameter) -> torch.Tensor:
        if id(parameter) not in stacks:
            whole = torch.stack([one.data for one in same[id(parameter)]])
            for one, mine in zip(same[id(parameter)], whole, strict=True):
                one.data = mine
            stacks[id(parameter)] = whole
        return stacks[id(parameter)]

    def replace(module: nn.Module) -> nn.Module | None:
        own = _own(module)
        if not own:
            return None
        parts = {name: stack(parameter) for name, parameter in own.items()}
        if isinstance(module, nn.Linear | Conv1D):
            weight = parts["weight"].transpose(1, 2) if isinstance(module, nn.Linear) else parts["weight"]
            return StackedLinear(weight, parts["bias"].unsqueeze(1) if "bias" in parts else None, active)
        if isinstance(module, nn.Embedding):
            return StackedEmbedding(parts["weight"], active)
        norm = copy.copy(RootMeanSquare.like(module) or module)
        norm._parameters = {}
        return StackedNorm(norm, {name: part.unsqueeze(1) for name, part in parts.items()}, active)

    return _rebuilt(first, replace)


def _rebuilt(model: PreTrainedModel, replace: Callable[[nn.Module], nn.Module | None]) -> PreTrainedModel:
    """A copy that shares every tensor with the model, with other layers in the place of some."""
    memo: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    for module in model.modules():
        if (other := replace(module)) is not None:
            memo[id(module)] = other
    network: PreTrainedModel = copy.deepcopy(model, memo)
    return network.eval()


def _for_few_rows(module: nn.Module) -> nn.Module | None:
    if type(module) is nn.Linear and module.weight.device.type == "cpu" and module.weight.dtype == torch.float32:
        return FewRowsLinear(module)
    return None


def _low_rank(module: Any, names: Sequence[str | None]) -> tuple[torch.Tensor, torch.Tensor]:
    """`[members, in, rank]` and `[members, rank, out]`, scaled; zeros for a lower rank and for members without."""
    parts = {name: (module.lora_A[name].weight.data, module.lora_B[name].weight.data) for name in names if name}
    rank = max(a.shape[0] for a, _ in parts.values())
    a, b = next(iter(parts.values()))
    down = a.new_zeros(len(names), a.shape[1], rank)
    up = a.new_zeros(len(names), rank, b.shape[0])
    for index, name in enumerate(names):
        if name:
            a, b = parts[name]
            down[index, :, : a.shape[0]] = a.T
            up[index, : a.shape[0]] = b.T * module.scaling[name]
    return down, up


def _own(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module._parameters.items() if parameter is not None}


def _known(module: nn.Module) -> bool:
    """Whether this is a kind of layer that can hold the weights of several members."""
    if type(module) in (nn.Linear, Conv1D, nn.LayerNorm):
        return True
    if type(module) is nn.Embedding:
        return module.max_norm is None
    return _is_rms_norm(module)


def _is_rms_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RMSNorm") and set(_own(module)) == {"weight"}


def essence(model: PreTrainedModel) -> str:
    """A config as text, without what does not change the network."""
    config = model.config.to_dict()
    named = {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}
    return json.dumps(named, sort_keys=True, default=str)
