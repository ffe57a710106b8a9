"""Layer 1: what every stage needs. No MLX, no numpy; pydantic only once something is read."""
