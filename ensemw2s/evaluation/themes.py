"""Colours of the page of a report and of its plots, for light and for dark paper.

Apart from `plots`, because the page and a command that draws nothing need no matplotlib.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Theme:
    """Colours of the page and its plots."""

    paper: str
    ink: str
    muted: str
    faint: str
    id: str
    ood: str
    other: str
    heat: str


LIGHT = Theme("#ffffff", "#1b1e22", "#5b626b", "#e4e7eb", "#0072b2", "#d55e00", "#737b84", "213 94 0")
DARK = Theme("#15171a", "#e7e9ec", "#9aa2ab", "#2b2f35", "#56b4e9", "#f0953f", "#9da5ae", "240 149 63")
