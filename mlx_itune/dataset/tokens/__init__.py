"""Tokenizers, tokenized rows and where they are kept."""
