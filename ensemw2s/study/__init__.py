"""Studies: one config with variations, over tasks and seeds, on one Ray; their statistics and their report."""
