"""Local inference and evaluation of a base, adapted or fused model."""

import mlx_itune.model  # noqa: F401  (loads the BLAS before mlx.core)
