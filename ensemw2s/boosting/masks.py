"""Error masks, which a round leaves beside its record, and the token weights that follow from them.

A mask has one bit per answer token of a split: whether it was predicted wrongly. On disk, bits are packed per example.
`RoundWeights` names masks and alphas of earlier rounds, so that a training worker computes its token weights itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ensemw2s.boosting import samme
from ensemw2s.errors import ArtifactError
from ensemw2s.storage import remote


def write_masks(path: Path, ids: list[str], lengths: list[int], masks: dict[str, NDArray[np.bool_]]) -> None:
    """Writes masks of shape [N], N = sum(lengths): one row per example, one column of packed bits per mask."""
    bounds = np.cumsum(lengths)[:-1]
    columns = {
        name: pa.array([np.packbits(part).tobytes() for part in np.split(mask, bounds)], pa.binary())
        for name, mask in masks.items()
    }
    table = pa.table({"id": pa.array(ids, pa.string()), "n_tokens": pa.array(lengths, pa.int32()), **columns})
    pq.write_table(table, path)


def read_mask(path: str | Path, column: str = "round") -> NDArray[np.bool_]:
    """Reads one mask, [N]. Raises `ArtifactError` where the file is damaged or lacks the column."""
    try:
        table = pq.read_table(remote.pull(Path(path)), columns=["n_tokens", column])
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise ArtifactError(
            f"error masks {path} cannot be read ({error}): delete the round's folder to redo it"
        ) from None
    parts = [
        np.unpackbits(np.frombuffer(bits, np.uint8), count=n)
        for n, bits in zip(table["n_tokens"].to_pylist(), table[column].to_pylist(), strict=True)
    ]
    return np.concatenate(parts).astype(bool) if parts else np.zeros(0, bool)


class RoundWeights(BaseModel):
    """Everything that the token weights of a round follow from, so that a worker can compute them by itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    masks: list[tuple[str, float]] = []
    """Path of errors.parquet and alpha of each earlier round that counts."""
    unit: samme.Unit = "token"
    window: int = 4
    shrinkage: float = 1.0
    clip: float | None = None
    weighting: Literal["loss", "bootstrap"] = "loss"
    bootstrap: Literal["count", "mask"] = "count"
    seed: int = 0
    examples: int | None = None
    """Examples that have errors and weights, from the first on; tokens of later ones have a multiplier of 1."""

    def units(self, lengths: list[int]) -> NDArray[np.int64]:
        return samme.unit_ids(lengths, self.unit, self.window)

    def weights(self, lengths: list[int]) -> NDArray[np.float64]:
        """Weights of the units, [U], summing to 1, for examples of these answer lengths."""
        units = self.units(lengths)
        masks = [samme.unit_errors(self._checked(path, len(units)), units) for path, _ in self.masks]
        n_units = int(units[-1]) + 1 if len(units) else 0
        alphas = [alpha for _, alpha in self.masks]
        return samme.weights(masks, alphas, n=n_units, shrinkage=self.shrinkage, clip=self.clip)

    def multipliers(self, lengths: list[int]) -> NDArray[np.float64]:
        """Loss multiplier of each token, [N]."""
        if self.examples is not None and self.examples < len(lengths):
            known, others = lengths[: self.examples], sum(lengths[self.examples :])
            return np.concatenate([self.multipliers(known), np.ones(others)])
        units, w = self.units(lengths), self.weights(lengths)
        if self.weighting == "bootstrap":
            return samme.bootstrap_multipliers(w, units, seed=self.seed, variant=self.bootstrap)
        return samme.multipliers(w, units)

    @staticmethod
    def _checked(path: str, n: int) -> NDArray[np.bool_]:
        mask = read_mask(path)
        if len(mask) != n:
            raise ArtifactError(f"error masks {path} cover {len(mask)} tokens, the training data has {n}")
        return mask
