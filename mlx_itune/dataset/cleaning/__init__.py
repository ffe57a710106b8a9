"""Cleaning: chosen steps over a data set, and the redaction of personal data."""
