"""Answers to many at once, over HTTP."""
