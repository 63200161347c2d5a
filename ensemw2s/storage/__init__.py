"""Run folders, here and in object storage: fingerprinted stages, written whole or not at all."""
