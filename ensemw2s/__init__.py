"""EnsemW2S: weak-to-strong generalization with a token-level boosted ensemble of weak experts, on Ray.

The public API is what this module names. It is imported when it is first used, so that `import ensemw2s` is quick:

    from ensemw2s import load_config, run
    results = run(load_config("quickstart"))

    from ensemw2s import Engine, Ensemble, Request
    ensemble = Ensemble.from_pretrained("runs/quickstart/ensemble")
    prompt = ensemble.tokenizer("sort up 3 1 2 =").input_ids
    end = (ensemble.tokenizer.eos_token_id,)
    for _, answer in Engine(ensemble.model, slots=8).run([Request(prompt, max_new_tokens=16, eos_ids=end)]):
        print(ensemble.tokenizer.decode(answer.token_ids))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ensemw2s.config import load_config
    from ensemw2s.ensemble.artifact import Ensemble
    from ensemw2s.ensemble.engine import Engine
    from ensemw2s.ensemble.requests import Request
    from ensemw2s.pipeline.run import run

__version__ = "0.2.0"

__all__ = ["Engine", "Ensemble", "Request", "__version__", "load_config", "run"]

_HOMES = {
    "Engine": "ensemw2s.ensemble.engine",
    "Ensemble": "ensemw2s.ensemble.artifact",
    "Request": "ensemw2s.ensemble.requests",
    "load_config": "ensemw2s.config",
    "run": "ensemw2s.pipeline.run",
}


if not TYPE_CHECKING:  # type checkers would take any name from a module that has this

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(_HOMES[name]), name)
        globals()[name] = found  # the next use does not come here
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
