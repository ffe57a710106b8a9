"""The model: backend, loading, compute, LoRA, adapters, loss. The only importer of mlx_lm.

Importing this package readies the machine's BLAS; it has to happen before `mlx.core` is imported.
"""

from mlx_itune.model.loading import backend

backend.prepare()
