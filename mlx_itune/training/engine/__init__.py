"""One optimizer step: batches, gradients, optimizers."""

import mlx_itune.model  # noqa: F401  (loads the BLAS before mlx.core)
