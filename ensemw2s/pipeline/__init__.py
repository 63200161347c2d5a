"""The stages of a run: their graph, what each does, and the one order in which they run."""
