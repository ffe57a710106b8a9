"""Instruction tuning on a Mac: raw rows in, a LoRA adapter, a fused and an exported model out.

One record's way through the package, file by file::

    raw file          dataset/sources       bytes -> Conversation (file:line kept)
    Conversation      dataset/conversation  frozen, validated turns
    TokenizedExample  dataset/rendering     input_ids (T,) int32, weights (T,) float32
    Batch             dataset/batching      what one optimizer step learns
    MicroBatch        training/engine       how the step is computed
    step              training/engine/step  (state, batch) -> (state, metrics)
    adapter           model/adapters        mlx-lm-compatible directory + provenance
    fused model       export/fusing/fuse    MLX directory + measured fidelity
    artefact          export/formats        read back and verified
"""

__version__ = "0.1.0"
