"""How members are mixed with their bases, as a record: light, because who describes a voter loads no model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Anchor:
    """How a member is mixed with its base when it is loaded (`models.anchoring`).

    Attributes:
        base: Folder of its base, or hub id, with `@revision` where it has one. Not read where `scale` is 1.
        scale: λ, in [0, 1].
    """

    base: str
    scale: float
