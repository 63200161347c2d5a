"""The key/value cache of an ensemble: one cache per member; what is done to the whole is done to each.

Its own module so that the engine and `generate()` share it: rows are reordered by beam search, repeated for several
samples, dropped when they finish, and cropped by assisted decoding, for all members at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import Cache, DynamicCache, PreTrainedConfig


class EnsembleCache(Cache):
    """One `DynamicCache` per member, seen as a single `Cache` whose layers are the layers of all members.

    Every member reads the same tokens, so the length of the first one is the length of all.
    """

    _is_user_defined: bool = False
    """Set where a caller of `generate()` brought the cache, which transformers then hands back."""

    def __init__(self, configs: Sequence[PreTrainedConfig]) -> None:
        """Empty caches for the members.

        Args:
            configs: Config of each member's model, in the members' order.
        """
        # With a config, a DynamicCache makes all its layers at once; they are shared with the list of the whole, so
        # that what transformers does to "the cache" reaches every member.
        self.members = [DynamicCache(config=config) for config in configs]
        super().__init__(layers=[layer for cache in self.members for layer in cache.layers])

    @property
    def is_compileable(self) -> bool:
        """False: each member makes its own masks, `generate()` must pass the two-dimensional one on."""
        return False

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps these rows, in this order.

        Args:
            indices: `[rows to keep]`, int64.
        """
        # Layers of linear attention know only `reorder_cache`, which does the same for any list of rows.
        self.reorder_cache(indices)  # type: ignore[arg-type]  # annotated LongTensor

    def __len__(self) -> int:
        return len(self.layers)
