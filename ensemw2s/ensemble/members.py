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

from ensemw2s.models.adapters import ADAPTER_CONFIG, adapter_base, load_adapter
from ensemw2s.models.loading import load_causal_lm


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
    directories: Sequence[str | Path], *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> list[MemberModel]:
    """Loads trained experts, full models and adapters in any mixture; each base is in memory once.

    Args:
        directories: Folders written by `models.loading.save_trained`, in the members' order.
        dtype: Type of the weights in memory.
        device: Where they go.

    Returns:
        A member for each folder, for `EnsembleForCausalLM`.

    Raises:
        ModelError: If one cannot be loaded.
    """
    shared: dict[tuple[str, str | None], PeftModel] = {}
    members: list[MemberModel] = []
    for index, directory in enumerate(Path(path) for path in directories):
        if not (directory / ADAPTER_CONFIG).exists():
            members.append(load_causal_lm(directory, dtype=dtype, device=device))
            continue
        base = adapter_base(directory)
        key = (base["path"], base["revision"])
        name = f"member_{index}"  # PEFT uses it as the name of a module: no dots, and no user's name
        target = shared.get(key) or load_causal_lm(base["path"], dtype=dtype, device=device, revision=base["revision"])
        shared[key] = load_adapter(target, directory, name)
        members.append(AdapterMember(shared[key], name))
    return members
