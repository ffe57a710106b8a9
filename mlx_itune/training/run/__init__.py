"""A run on disk: record, checkpoints, resume, incidents."""

import mlx_itune.model  # noqa: F401  (loads the BLAS before mlx.core)
