"""Conversations as text and tokens, with what is learned of each."""
