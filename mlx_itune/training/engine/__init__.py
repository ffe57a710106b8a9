"""One optimizer step: batches, gradients, optimizers."""
