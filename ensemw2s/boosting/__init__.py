"""Boosting of token-level experts: the maths, error masks, teacher-forced scoring, and the records of rounds."""
