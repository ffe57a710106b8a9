"""Distributions of a data set, and their page."""
