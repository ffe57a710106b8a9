"""Layer 2: raw file -> Conversation -> TokenizedExample -> Batch. No MLX, no mlx_lm."""
