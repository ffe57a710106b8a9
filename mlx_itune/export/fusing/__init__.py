"""Adapter and base as one model, and what that lost."""
