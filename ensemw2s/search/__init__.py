"""Searching ensemble size, learning rates and whatever else the config's space names, on Ray Tune."""
