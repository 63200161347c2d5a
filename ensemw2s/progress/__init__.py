"""What a run tells of itself while it goes: lines and bars for people (`terminal`), stages for Prometheus."""

from ensemw2s.progress.terminal import Progress

__all__ = ["Progress"]
