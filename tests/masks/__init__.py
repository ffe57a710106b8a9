"""Masks against an oracle that builds every family's text by hand."""
