"""From adapter to artefact: fuse, convert, read back, verify; each loss measured."""

import mlx_itune.model  # noqa: F401  (loads the BLAS before mlx.core)
