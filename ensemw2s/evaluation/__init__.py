"""Judging what a run made: figures with their intervals, the baselines they count against, and the report."""
