"""Adapters: layers, files, targets."""
