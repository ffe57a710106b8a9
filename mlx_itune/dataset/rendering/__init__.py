"""Conversations as examples: what is learned of each, cut to a length, kept, shown."""
