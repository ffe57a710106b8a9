"""Memory and time of a run, before it."""

import mlx_itune.model  # noqa: F401  (loads the BLAS before mlx.core)
