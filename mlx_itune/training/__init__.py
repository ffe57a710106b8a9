"""Training: from settings and rows to an adapter. `settings` is light; the rest loads MLX."""
