"""Loading the experts of an ensemble: folders come in, models that share what they can share go out.

Apart from the ensemble itself because sharing is a matter of what is on disk: adapters that name the same base get
one copy of it, however many they are, next to full models that stand alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ensemw2s.ensemble.anchor import Anchor
from ensemw2s.errors import ResourceError
from ensemw2s.models.adapters import adapter_base, load_adapter
from ensemw2s.models.anchoring import load_anchored, scale_adapter
from ensemw2s.models.info import ADAPTER_CONFIG, model_info
from ensemw2s.models.loading import load_causal_lm
from ensemw2s.storage import remote

WEIGHTS_SHARE = 0.7
"""Share of a GPU's free memory that weights may take; the rest is for the cache and for what a forward pass needs."""


@dataclass(frozen=True)
class AdapterMember:
    """A member that is one set of adapters in a PEFT model which other members may share.

    Attributes:
        model: The base with all adapters.
        adapter: Name of this member's adapters in it.
    """

    model: PeftModel
    adapter: str


MemberModel: TypeAlias = PreTrainedModel | PeftModel | AdapterMember


def load_members(
    directories: Sequence[str | Path],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    anchors: Sequence[Anchor] = (),
) -> list[MemberModel]:
    """Loads trained experts, full models and adapters in any mixture; each base is in memory once.

    Args:
        directories: Folders written by `models.loading.save_trained`, in the members' order.
        dtype: Type of the weights in memory.
        device: Where they go; `cuda` without a number: over all GPUs, where they do not fit on the first.
        anchors: How each is mixed with its base; empty: not at all.

    Returns:
        A member for each folder, for `EnsembleForCausalLM`.

    Raises:
        ModelError: If one cannot be loaded.
        ResourceError: If there is more than one GPU, and one model is too big for any of them.
    """
    folders = [remote.pull(Path(path)) for path in directories]
    homes = _devices(folders, dtype, str(device))
    shared: dict[tuple[str, str | None], PeftModel] = {}
    members: list[MemberModel] = []
    for index, directory in enumerate(folders):
        device = homes[index]
        if not (directory / ADAPTER_CONFIG).exists():
            if anchors:
                anchor = anchors[index]
                members.append(load_anchored(directory, anchor.base, anchor.scale, dtype=dtype, device=device))
            else:
                members.append(load_causal_lm(directory, dtype=dtype, device=device))
            continue
        base = adapter_base(directory)
        key = (base["path"], base["revision"])
        name = f"member_{index}"  # PEFT uses it as the name of a module: no dots, and no user's name
        target = shared.get(key) or load_causal_lm(base["path"], dtype=dtype, device=device, revision=base["revision"])
        shared[key] = load_adapter(target, directory, name)
        if anchors:
            scale_adapter(shared[key], name, anchors[index].scale)
        members.append(AdapterMember(shared[key], name))
    return members


def place(sizes: Sequence[int], room: Sequence[int]) -> list[int]:
    """Which device each model goes to: all to the first if they fit, else the largest first to where most room is.

    Args:
        sizes: Bytes of each model.
        room: Bytes that each device has for models.

    Returns:
        An index into `room` for each model.

    Raises:
        ResourceError: If a model fits nowhere.
    """
    if sum(sizes) <= room[0]:
        return [0] * len(sizes)
    left, homes = list(room), [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        home = left.index(max(left))
        if sizes[index] > left[home]:
            gib = [f"{value / 2**30:.1f}" for value in (sizes[index], left[home])]
            raise ResourceError(
                f"an ensemble of {len(sizes)} models does not fit: one of {gib[0]} GiB, and {gib[1]} GiB left on the "
                "emptiest GPU; give an actor more GPUs (labeling.gpus_per_actor), or take fewer or smaller experts"
            )
        homes[index] = home
        left[home] -= sizes[index]
    return homes


def _devices(directories: Sequence[Path], dtype: torch.dtype, device: str) -> list[str]:
    """Where each member's model goes; adapters go where their base is."""
    count = torch.cuda.device_count() if device == "cuda" else 0
    if count < 2:
        return [device] * len(directories)
    keys = [adapter_base(path)["path"] if (path / ADAPTER_CONFIG).exists() else str(path) for path in directories]
    unique = list(dict.fromkeys(keys))
    sizes = [model_info(key).parameters * dtype.itemsize for key in unique]
    room = [int(torch.cuda.mem_get_info(index)[0] * WEIGHTS_SHARE) for index in range(count)]
    homes = dict(zip(unique, place(sizes, room), strict=True))
    return [f"cuda:{homes[key]}" for key in keys]
