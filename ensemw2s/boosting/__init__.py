"""Boosting of token-level experts: pure maths, teacher-forced scoring, and the rounds that use both."""
