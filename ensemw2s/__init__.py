"""EnsemW2S: weak-to-strong generalization with a token-level boosted ensemble of weak experts, on Ray."""

__version__ = "0.1.0"
