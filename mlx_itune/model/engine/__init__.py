"""What a training step computes: loss, caches, checkpointing."""
