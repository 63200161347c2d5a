"""Mixtures over bytes: models with different tokenizers predict the next byte of a text together (docs/bytewise.md)."""
