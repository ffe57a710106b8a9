"""Rows with named fields -> prompts and answers, through many templates per task."""
