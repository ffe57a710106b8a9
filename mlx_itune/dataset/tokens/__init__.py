"""Texts and token ids: chat templates, control text, the tokenizer."""
