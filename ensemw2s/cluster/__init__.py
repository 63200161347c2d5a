"""Ray: connecting to it, dividing it, and the pools of actors that work on it."""
