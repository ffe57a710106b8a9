"""Answers to many at once, from mlx-lm's batches."""
