"""Pseudo-labels and other decoding work, streamed over a pool of Ray Data actors."""
