"""Layer 1: what every stage needs. Standard library only, no MLX, no numpy."""
