"""Forward passes of the engine: tokens of all slots in, every member's logits out, in as few passes as can be.

Members are put into groups, each of which takes one pass: adapters on a shared base, small models of one architecture
stacked, and everything else alone. A group is held to the members' own Hugging Face forward when it is made; where it
does not give the same numbers, or cannot be made, its members run one prompt at a time with transformers' own cache.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from peft import PeftModel
from transformers import DynamicCache, PreTrainedModel

from ensemw2s.ensemble.graphs import DecodeSteps
from ensemw2s.ensemble.rows import Active, NotStackable, essence, shared_base, stacked
from ensemw2s.ensemble.slots import ATTENTION, SlotCache, View, causal_mask, windows_seen

log = logging.getLogger(__name__)

STACK_UP_TO = 30_000_000
"""Parameters of a member up to which full models are stacked: there the time goes into starting operations, and one
batched product beats several; larger ones read their weights at the memory's speed either way."""

TOLERANCE = 0.002
"""Mean difference in log-probability of the likeliest tokens that a group may have from its members alone, in float32;
in half precision, where rounding depends on the shape of the batch, `HALF` times that. A wrong position costs 1."""

HALF = 100


def padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, list[int]]:
    """Rows of token ids as `[rows, longest]`, int64, filled up on the right, and how many tokens each has."""
    counts = [len(row) for row in rows]
    width = max(counts)
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.int64), counts


@dataclass(frozen=True)
class MemberNetwork:
    """A member as the groups see it.

    Attributes:
        network: The transformers model itself (the base with PEFT's layers in it, for adapters).
        peft: The PEFT model around it, if there is one.
        adapter: Name of its adapters, if it has any.
    """

    network: PreTrainedModel
    peft: PeftModel | None
    adapter: str | None


class Group(Protocol):
    """Some members, and a cache with a place for each prompt.

    Attributes:
        kind: What it is, in words for people.
        members: Places of its members in the ensemble.
    """

    kind: str
    members: list[int]

    def logits(self, ids: torch.Tensor, starts: Sequence[int], counts: Sequence[int], first: int = 0) -> torch.Tensor:
        """Reads new tokens into the slots `first`, `first` + 1, …, and gives the logits after each.

        Args:
            ids: `[slots, q]`, int64; row i has `counts[i]` tokens, what follows is ignored.
            starts: Tokens that each slot has read before; later ones, if there are any, are forgotten.
            counts: New tokens of each slot, 0 to q; not 0 in all.
            first: The first slot.

        Returns:
            `[members, slots, q, vocabulary]`; what lies beyond a row's count has no meaning.
        """

    def read(self, ids: torch.Tensor, starts: Sequence[int], counts: Sequence[int], first: int = 0) -> None:
        """The same without logits."""

    def move(self, source: int, target: int) -> None:
        """Copies what a slot has read onto another."""

    def reserve(self, length: int) -> None:
        """Allocates memory for sequences of up to this many tokens in each slot."""

    def release(self) -> None:
        """Forgets what was read, and gives its memory back."""


class RowGroup:
    """Members that are rows of one forward pass."""

    def __init__(self, kind: str, members: list[int], network: PreTrainedModel, active: Active, slots: int) -> None:
        """Args: how it runs, in words; its members' places; their network; which of them run; how many slots."""
        self.kind, self.members, self.network, self.active = kind, members, network, active
        config = network.config.get_text_config()
        config._attn_implementation = ATTENTION
        heads = config.num_attention_heads
        self.heads = getattr(config, "num_key_value_heads", None) or heads
        self.group = heads // self.heads
        self.limit = getattr(config, "max_position_embeddings", None)
        self.device, self.dtype = network.device, network.dtype  # which transformers looks up anew each time
        self.cache = SlotCache(len(members), slots)
        self.everyone = slice(0, len(members))
        self.steps = DecodeSteps(self.cache, self.one_token, self.device) if self.device.type == "cuda" else None

    def logits(
        self,
        ids: torch.Tensor,
        starts: Sequence[int],
        counts: Sequence[int],
        first: int = 0,
        members: slice | None = None,
    ) -> torch.Tensor:
        """See `Group`; `members` are those of the group that run."""

        def plain() -> torch.Tensor:
            out = self._forward(self.network, ids, starts, counts, first, members or self.everyone)
            return out.logits.view(self.active.count, *ids.shape, -1)

        if self.steps is not None and ids.shape[1] == 1 and first == 0 and members in (None, self.everyone):
            return self.steps.logits(ids, starts, plain)
        return plain()

    @torch.inference_mode()
    def one_token(self, ids: torch.Tensor, positions: torch.Tensor, length: int) -> torch.Tensor:
        """A pass of one token in each of the first slots, that asks the device for nothing and so can be recorded.

        Args:
            ids: `[slots, 1]`, int64, on the device.
            positions: `[slots, 1]`, int64, on the device: where each lies.
            length: Keys that are looked at; there is room for as many.

        Returns:
            `[members, slots, 1, vocabulary]`.
        """
        rows = torch.arange(len(ids), device=self.device).unsqueeze(-1)
        whole = len(ids) == self.cache.slots
        view = View(self.everyone, slice(0, len(ids)), positions, length, rows, None, whole)
        return self._pass(self.network, ids, view).logits.view(self.active.count, *ids.shape, -1)

    def read(
        self,
        ids: torch.Tensor,
        starts: Sequence[int],
        counts: Sequence[int],
        first: int = 0,
        members: slice | None = None,
    ) -> None:
        """See `Group`."""
        self._forward(self.network.get_decoder(), ids, starts, counts, first, members or self.everyone)

    @torch.inference_mode()
    def move(self, source: int, target: int) -> None:
        """See `Group`."""
        self.cache.move(source, target)

    @torch.inference_mode()
    def reserve(self, length: int) -> None:
        """See `Group`."""
        if self.steps is not None and length > self.cache.length:
            self.steps.forget()  # before the memory is taken: theirs may be what is lacking
        self.cache.reserve(length)

    def release(self) -> None:
        """See `Group`."""
        if self.steps is not None:
            self.steps.forget()
        self.cache.release()

    @torch.inference_mode()
    def _forward(
        self,
        network: Any,
        ids: torch.Tensor,
        starts: Sequence[int],
        counts: Sequence[int],
        first: int,
        members: slice,
    ) -> Any:
        slots, q = ids.shape
        # What fills a row up takes no room of its own: beyond the end it goes to the last place, which is never read.
        self.cache.reserve(max(start + count for start, count in zip(starts, counts, strict=True)) + 1)
        begin = torch.tensor(starts, device=self.device).unsqueeze(-1)
        positions = (begin + torch.arange(q, device=self.device)).clamp(max=self.cache.length - 1)
        length = self.cache.looked_at(max(starts) + q, self.group * q)
        same = starts[0] if min(starts) == max(starts) else None
        rows = torch.arange(slots, device=self.device).unsqueeze(-1)
        whole = (members.stop - members.start, slots) == (self.cache.members, self.cache.slots)
        view = View(members, slice(first, first + slots), positions, length, rows, same, whole)
        return self._pass(network, ids.to(self.device), view)

    def _pass(self, network: Any, ids: torch.Tensor, view: View) -> Any:
        count = view.members.stop - view.members.start
        self.active.members, self.active.count = view.members, count
        self.cache.view = view
        mask = causal_mask(view, self.heads, self.group, self.dtype)
        # What fills a row up may lie beyond the context; it is not looked at, but has to have a position.
        named = view.positions.clamp(max=self.limit - 1) if self.limit else view.positions
        return network(
            input_ids=ids.repeat(count, 1),
            attention_mask=mask,
            position_ids=named.repeat(count, 1),
            past_key_values=self.cache,
            use_cache=True,
        )


class AloneGroup:
    """One member of any architecture, one prompt at a time, with transformers' own growing cache."""

    def __init__(self, index: int, member: MemberNetwork, why: str) -> None:
        """Args: place in the ensemble; the member; why it is alone."""
        self.kind, self.members, self.member = f"one prompt at a time ({why})", [index], member
        self.caches: dict[int, DynamicCache] = {}

    def logits(self, ids: torch.Tensor, starts: Sequence[int], counts: Sequence[int], first: int = 0) -> torch.Tensor:
        """See `Group`."""
        rows = {i: self._row(first + i, ids[i, :n], starts[i]) for i, n in enumerate(counts) if n}
        any_row = next(iter(rows.values()))
        out = any_row.new_zeros(1, *ids.shape, any_row.shape[-1])
        for i, row in rows.items():
            out[0, i, : counts[i]] = row
        return out

    def read(self, ids: torch.Tensor, starts: Sequence[int], counts: Sequence[int], first: int = 0) -> None:
        """See `Group`."""
        for i, count in enumerate(counts):
            if count:
                self._row(first + i, ids[i, :count], starts[i])

    def move(self, source: int, target: int) -> None:
        """See `Group`; the source is used no more, and has nothing yet where none of its prompt was read."""
        if source in self.caches:
            self.caches[target] = self.caches.pop(source)

    def reserve(self, length: int) -> None:
        """Does nothing: transformers' cache grows with every token."""

    def release(self) -> None:
        """See `Group`."""
        self.caches.clear()

    @torch.inference_mode()
    def _row(self, slot: int, ids: torch.Tensor, start: int) -> torch.Tensor:
        network = self.member.network
        if start == 0:
            self.caches[slot] = DynamicCache(config=network.config.get_text_config())
        cache = self.caches[slot]
        if (beyond := cache.get_seq_length() - start) > 0:
            cache.crop(-beyond)
        peft, adapter = self.member.peft, self.member.adapter
        if peft is not None and adapter is not None and peft.active_adapters != [adapter]:
            peft.set_adapter(adapter, inference_mode=True)
        output = network(input_ids=ids.unsqueeze(0).to(network.device), past_key_values=cache, use_cache=True)
        return output.logits[0]


def make_groups(members: Sequence[MemberNetwork], slots: int) -> list[Group]:
    """Puts members into as few groups as they allow.

    Args:
        members: In the ensemble's order.
        slots: Most prompts at a time.

    Returns:
        Groups that have every member once.
    """
    groups: list[Group] = []
    for together in _candidates(members):
        groups += _group(members, together, slots)
    for group in groups:
        log.info("members %s: %s", ", ".join(map(str, group.members)), group.kind)
    return groups


def _candidates(members: Sequence[MemberNetwork]) -> list[list[int]]:
    """Members that may share a pass: those on one base, and small full models of one class."""
    sets: dict[Any, list[int]] = {}
    for index, member in enumerate(members):
        small = member.peft is None and sum(p.numel() for p in member.network.parameters()) <= STACK_UP_TO
        kind = (type(member.network), str(member.network.device), essence(member.network))
        key = kind if small else id(member.network)
        sets.setdefault(key, []).append(index)
    return list(sets.values())


def _group(members: Sequence[MemberNetwork], together: list[int], slots: int) -> list[Group]:
    """One group, or where that does not work, several."""
    chosen = [members[i] for i in together]
    active = Active(slice(0, len(chosen)), len(chosen))
    unique = {id(m.network) for m in chosen}
    try:
        _check_architecture(chosen[0].network)
        if len(unique) == 1:
            network = shared_base(chosen[0].network, [m.adapter for m in chosen], active)
            kind = "adapters on one base, one pass" if any(m.adapter for m in chosen) else "one pass"
        elif len(unique) == len(chosen):
            network = stacked([m.network for m in chosen], active)
            kind = "stacked full weights, one pass"
        else:
            raise NotStackable("a model that is a member twice")
        group = RowGroup(kind, together, network, active, slots)
        _check_same(group, chosen)
        return [group]
    except torch.OutOfMemoryError:
        raise
    except NotStackable as error:
        why = str(error)
        log.info("members %s do not share a pass: %s", together, why)
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError) as error:  # of some architecture's own code
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        log.warning("members %s do not share a pass: %s", together, why)
    if len(together) == 1:
        return [AloneGroup(together[0], chosen[0], why)]
    return [part for i in together for part in _group(members, [i], slots)]


def _check_architecture(network: PreTrainedModel) -> None:
    config = network.config.get_text_config()
    if not getattr(network, "_supports_attention_backend", False):
        raise NotStackable(f"{type(network).__name__} has an attention of its own")
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [part for part in rope.values() if isinstance(part, dict)]
    types = {str(part.get("rope_type", "default")) for part in (rope, *nested)}
    if changing := [kind for kind in types if kind == "longrope" or "dynamic" in kind]:
        raise NotStackable(f"{changing[0]} rotations, which depend on the longest row of a batch")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if other := kinds - {"full_attention", "sliding_attention"}:
        raise NotStackable(f"{type(network).__name__} has layers of kind {', '.join(sorted(other))}")


def _check_same(group: RowGroup, members: Sequence[MemberNetwork]) -> None:
    """Raises unless the group gives what each member gives alone, for two rows of different length in three passes."""
    windows_seen.clear()
    vocabulary = group.network.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(vocabulary, (2, 7), generator=generator)
    slots = min(2, group.cache.slots)
    rows = rows[:slots]
    group.read(rows[:, :3], [0] * slots, [3, 2][:slots])
    some = group.logits(rows[:, 3:6], [3, 2][:slots], [3] * slots)
    last = group.logits(rows[:, 6:], [6, 5][:slots], [1] * slots)
    got = torch.cat([some, last], dim=2).float().log_softmax(-1)
    for index, member in enumerate(members):
        for slot in range(slots):
            start = (3, 2)[slot]
            tokens = torch.cat([rows[slot, :start], rows[slot, 3:]])
            alone = AloneGroup(0, member, "").logits(tokens.unsqueeze(0), [0], [len(tokens)])[0, 0]
            likely, ids = alone[-4:].float().log_softmax(-1).topk(min(8, vocabulary))
            apart = (likely - got[index, slot].gather(-1, ids)).abs().mean().item()
            allowed = TOLERANCE * (1 if group.network.dtype == torch.float32 else HALF)
            if not apart <= allowed:
                raise NotStackable(f"its pass differs from {type(member.network).__name__}'s own by {apart:.2g}")
    window = _window(group.network)
    if window is not None and window not in windows_seen:
        raise NotStackable(f"{type(group.network).__name__} has its sliding window in the mask alone")


def _window(network: PreTrainedModel) -> int | None:
    """The sliding window of some layers, if there is one."""
    config = network.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if (kinds and "sliding_attention" not in kinds) or getattr(config, "use_sliding_window", True) is False:
        return None
    window = getattr(config, "sliding_window", None)
    return int(window) if window else None
