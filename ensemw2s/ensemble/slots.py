"""The key/value cache of the engine: one slot per prompt, in which position p lies at index p.

Allocated for all slots at once, and again only when an answer is longer than any before, where `EnsembleCache` grows
with every token: rows of any length sit side by side without padding, a row that leaves is overwritten by another, and
nothing is ever computed twice. Its attention is a function registered with transformers, so that models of many
architectures use it as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ensemw2s.ensemble.rows import NotStackable

ATTENTION = "ensemw2s_slots"
"""Name under which transformers finds `attend`."""

FEW_QUERIES = 16
"""Queries of a head up to which attention is written out on a CPU."""

FEWEST_PRODUCTS = 400
"""Multiplications of a head under which PyTorch forms batched products on a CPU by a plain loop of its own, which takes
up to four times as long as the library that has the larger ones: a few keys more, which are hidden, cost less."""

windows_seen: set[int] = set()
"""Sliding windows that layers have asked `attend` for; one that a config has and no layer asks for is in masks."""

GROWTH = 64
"""Places for tokens are allocated in multiples of this."""


@dataclass
class View:
    """The part of the cache that a forward pass works on: some members, some slots, the keys up to some length.

    Attributes:
        members: Which members.
        slots: Which slots.
        positions: `[slots, q]`, int64: where each new token lies.
        length: Keys that are looked at; more than every position.
        rows: `[slots, 1]`, int64: 0, 1, ….
        start: Position of the first new token where it is the same in all slots, so that keys are written as a slice.
        whole: Whether these are all members and all slots.
    """

    members: slice
    slots: slice
    positions: torch.Tensor
    length: int
    rows: torch.Tensor
    start: int | None
    whole: bool


class SlotCache(Cache):
    """Keys and values `[members, slots, heads, length, head size]` of every layer.

    Members are the outer dimension: rows of a forward pass are ordered by member, then by slot, and `[members, slots ×
    heads]` of them are the batch and the heads of one attention, without a copy.

    Attributes:
        length: Places of a slot.
        view: What the coming forward pass works on.
        moves: How often something was allocated anew, so that what was recorded of its address is wrong.
    """

    def __init__(self, members: int, slots: int) -> None:
        """An empty cache; memory is taken when the first keys of a layer arrive.

        Args:
            members: Members that share a forward pass.
            slots: Most prompts at a time.
        """
        super().__init__(layers=[])
        self.members, self.slots, self.length = members, slots, 0
        self.view: View | None = None
        self.moves = 0
        self._keys: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}

    @property
    def is_compileable(self) -> bool:
        """False: masks are made here, not by transformers."""
        return False

    @property
    def bytes(self) -> int:
        """Bytes allocated."""
        return sum(t.nbytes for part in (self._keys, self._values) for t in part.values())

    def reserve(self, length: int) -> None:
        """Makes room for up to this many tokens in each slot; what is there stays."""
        if length <= self.length:
            return
        wider = max(math.ceil(length / GROWTH) * GROWTH, min(2 * self.length, length + 16 * GROWTH))
        for part in (self._keys, self._values):
            for layer, old in part.items():
                if old.shape[3] < wider:  # memory may have run out half way the last time
                    self.moves += 1
                    part[layer] = self._allocate(old, wider)
                    part[layer][..., : old.shape[3], :] = old
        self.length = wider

    def release(self) -> None:
        """Gives all memory back."""
        self.moves += 1
        self._keys.clear()
        self._values.clear()
        self.length = 0

    def looked_at(self, needed: int, queries: int) -> int:
        """How many keys a pass should look at: `needed`, or on CPUs somewhat more, see `FEWEST_PRODUCTS`.

        Args:
            needed: Keys up to the last new token.
            queries: Queries of a head of keys.
        """
        keys = next(iter(self._keys.values()), None)
        if keys is not None and keys.device.type == "cpu":
            needed = max(needed, math.ceil(FEWEST_PRODUCTS / (queries * keys.shape[-1])))
        return min(needed, self.length)

    def move(self, source: int, target: int) -> None:
        """Copies a slot onto another."""
        for part in (self._keys, self._values):
            for tensor in part.values():
                tensor[:, target] = tensor[:, source]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the keys and values of a layer at the positions of the view, and gives all that the view can see.

        Args:
            key_states: `[members × slots, heads, q, head size]`.
            value_states: The same.
            layer_idx: Index of the layer.

        Returns:
            Keys and values, `[members, slots × heads, length, head size]`: views of the cache.
        """
        assert self.view is not None
        return (
            self._write(self._keys, layer_idx, key_states, self.view),
            self._write(self._values, layer_idx, value_states, self.view),
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens before the view's first, where transformers asks; positions are always given, so it never matters."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Keys that are looked at, and the first of them."""
        return (self.view.length if self.view else query_length), 0

    def _write(self, part: dict[int, torch.Tensor], layer: int, new: torch.Tensor, view: View) -> torch.Tensor:
        if layer not in part:
            part[layer] = self._allocate(new, self.length)
            self.moves += 1
        mine = part[layer] if view.whole else part[layer][view.members, view.slots]
        members, slots, heads = mine.shape[:3]
        q = new.shape[2]
        new = new.view(members, slots, heads, q, -1)
        if view.start is not None:
            mine.narrow(3, view.start, q).copy_(new)
        else:
            mine[:, view.rows, :, view.positions] = new.permute(1, 3, 0, 2, 4)
        return mine.narrow(3, 0, view.length).flatten(1, 2)

    def _allocate(self, like: torch.Tensor, length: int) -> torch.Tensor:
        heads, size = (like.shape[1], like.shape[3]) if like.dim() == 4 else (like.shape[2], like.shape[4])
        return torch.zeros((self.members, self.slots, heads, length, size), dtype=like.dtype, device=like.device)


def causal_mask(view: View, heads: int, group: int, dtype: torch.dtype) -> torch.Tensor:
    """What each new token must not see, as numbers to add: 0 up to its own position, -inf beyond.

    Args:
        view: Positions and length.
        heads: Heads of keys and values.
        group: Query heads that share one of them.
        dtype: Type of the queries.

    Returns:
        `[members, slots × heads, group × q, length]`; in memory once for all members where it is large.
    """
    members, (slots, q) = view.members.stop - view.members.start, view.positions.shape
    hidden = torch.arange(view.length, device=view.positions.device) > view.positions.unsqueeze(-1)
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, -torch.inf)
    shape = (slots * heads, group * q, view.length)
    mask = mask.view(slots, 1, 1, q, view.length).expand(-1, heads, group, -1, -1)
    if group * q > FEW_QUERIES:
        return mask.reshape(1, *shape).expand(members, -1, -1, -1)
    return mask.unsqueeze(0).expand(members, -1, -1, -1, -1, -1).reshape(members, *shape)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over the cache, called by the models' own layers.

    Several query heads that share a key head are several queries of that head, so keys are never repeated.

    Args:
        module: The layer, not read.
        query: `[members × slots, query heads, q, head size]`.
        key: `[members, slots × heads, length, head size]`, what `SlotCache.update` gave.
        value: The same.
        attention_mask: `[members, slots × heads, group × q, length]`, what `causal_mask` gave.
        scaling: Factor on the products; default: one over the square root of the head size.
        sliding_window: How far a token looks back; default: to the start.
        dropout: Not used: nothing is trained here.
        softcap: Not known here.
        s_aux: Not known here.
        position_bias: Not known here.

    Returns:
        `[members × slots, q, query heads, head size]`, and no attention weights.

    Raises:
        NotStackable: For what a few architectures do differently; their members run one prompt at a time.
    """
    if sliding_window is not None:
        windows_seen.add(sliding_window)
    if softcap is not None or s_aux is not None or position_bias is not None:
        raise NotStackable("attention with soft caps, sinks or biases")
    rows, query_heads, q, size = query.shape
    members, heads = key.shape[:2]
    group = rows * query_heads // (members * heads)
    mask = attention_mask
    if sliding_window is not None and key.shape[2] > sliding_window:
        last = (mask == 0).sum(dim=-1, keepdim=True) - 1
        keys = torch.arange(key.shape[2], device=key.device)
        mask = mask.masked_fill(keys <= last - sliding_window, -torch.inf)
    query = query.reshape(members, heads, group * q, size)
    if query.device.type == "cpu" and group * q <= FEW_QUERIES:
        output = _few_queries(query, key, value, mask, scaling)
    else:
        output = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return output.reshape(rows, query_heads, q, -1).transpose(1, 2), None


def _few_queries(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """The same written out, which CPUs do up to six times as fast where a head has few queries."""
    members, heads, queries, size = query.shape
    if members > 1 and key.stride(0) != heads * key.stride(1):  # not all slots: as one product it would be copied
        each = zip(query.split(1), key.split(1), value.split(1), mask.split(1), strict=True)
        return torch.cat([_few_queries(q, k, v, hidden, scaling) for q, k, v, hidden in each])
    scores = torch.baddbmm(
        mask.reshape(members * heads, queries, -1),
        query.reshape(members * heads, queries, size),
        key.reshape(members * heads, -1, size).transpose(1, 2),
        alpha=size**-0.5 if scaling is None else scaling,
    )
    return torch.bmm(scores.softmax(dim=-1), value.reshape(members * heads, value.shape[2], -1))


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
