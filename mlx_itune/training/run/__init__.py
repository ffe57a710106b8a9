"""A run on disk: record, checkpoints, resume, incidents."""
