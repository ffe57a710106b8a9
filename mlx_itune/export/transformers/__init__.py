"""Directories for transformers and PEFT."""
