"""What an app receives: MLX, Ollama, LM Studio, bundles."""
