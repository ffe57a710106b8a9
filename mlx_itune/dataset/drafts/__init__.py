"""Rows that a model drafted: what they are, and which of them a person accepted."""
