"""Stages for Prometheus: how long each stage of a run has been under way, as a metric of the Ray that the run is on.

Apart from the progress that people see because it goes another way: Ray's agent on the driver's node exports it, beside
Ray's own metrics and under its prefix, `ray_`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

SECONDS = "ensemw2s_stage_seconds"

BEAT = 1.0
"""Seconds between two settings: Ray forgets a value that is not set again, as that of a driver that died should be."""


@cache
def _gauge() -> Any:
    from ray.util.metrics import Gauge

    return Gauge(SECONDS, "How long a stage of a run has been under way; gone soon after its end.", ("run", "stage"))


@contextmanager
def running(run: str, stage: str) -> Iterator[None]:
    """Around a stage. Without a Ray there is nobody to tell.

    Args:
        run: Name of the run.
        stage: Name of the stage.
    """
    import ray

    if not ray.is_initialized():
        yield
        return
    gauge, began, over = _gauge(), time.monotonic(), threading.Event()

    def tell() -> None:
        gauge.set(time.monotonic() - began, {"run": run, "stage": stage})

    def beat() -> None:
        while not over.wait(BEAT):
            tell()

    tell()
    thread = threading.Thread(target=beat, name=f"metrics of {stage}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        tell()
