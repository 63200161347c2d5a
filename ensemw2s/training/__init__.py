"""Training: one worker's DeepSpeed loop, and the Ray Train runs that carry it."""
