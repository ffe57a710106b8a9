"""Training: from settings and rows to an adapter."""

import mlx_itune.model  # noqa: F401  (loads the BLAS before mlx.core)
