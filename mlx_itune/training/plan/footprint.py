"""What a training step holds in memory, from sizes alone; the arithmetic behind `plan`.

peak = base + adapter + optimizer + the larger of two moments of a step:
  computing  gradients of the micro-batches that are done
             + per lane: blocks * what a block keeps for its backward
                       + the larger of its work space and the logits of one chunk
  updating   gradients and new moments, a few times the adapter

What a block keeps per position is counted from its matrices: inputs of adapted layers, outputs
that attention, norms and gates need again, and attention weights. The constants below say how often
each stands in memory. They were fitted to measured peaks; `benchmarks/plan.py` prints both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from mlx_itune.model.engine.shapes import Matrix, Shapes
from mlx_itune.training.engine.step_ways import recomputed_blocks
from mlx_itune.training.plan.step_shape import Group, How, Rectangle

# Logits of a chunk, float32, with what their gradient is made of: times they stand there.
LOGITS_COPIES = 6.5
# Work space of a block's backward, numbers per position: of the MLP's width and of the hidden size;
# of the queries' width and of that of keys and values.
MLP_WORK, HIDDEN_WORK, QUERY_WORK, KEY_WORK = 5.5, 12.0, 13.0, 2.0
# Outputs of its blocks that the CPU's attention keeps besides.
ATTENTION_OUTPUTS = 2.3
# Of the outputs of a DoRA layer, those kept before their lengths are set (measured).
DORA_OUTPUTS = 0.75
# Attention weights a causal block of queries computes on the CPU: queries per block.
ATTENTION_BLOCK = 72
# Lanes seldom stand at their peaks together: what each more adds, of the first one's.
LANE_SHARE = 0.7
# The update, in sizes of the adapter, besides parameters and moments.
UPDATE_COPIES = 6.0
# Float copies of a matrix that is made again in each product.
WEIGHT_COPIES = 3.0
# Of a backend's lazy evaluation, arrays outside of blocks: numbers per position and hidden size.
EMBEDDING_WORK = 2.0

# Of a row computed alone, numbers per position in a block's backward pass: times the MLP's width,
# the hidden size, queries and keys; outside of blocks; and times the logits of a chunk.
AT_ONCE_MLP, AT_ONCE_HIDDEN, AT_ONCE_HEADS, AT_ONCE_ENDS, AT_ONCE_LOGITS = 6.0, 8.0, 6.0, 2.0, 3.0

# Float vectors of the adapter's size that an optimizer keeps.
MOMENTS = {
    **dict.fromkeys(("adamw", "adam", "adamax", "adadelta"), 2.0),
    **dict.fromkeys(("lion", "sgd", "rmsprop", "adagrad", "muon"), 1.0),
    "adafactor": 0.1,
}
_ATTENTION_IN = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "Wqkv", "c_attn")
_MLP_IN = ("gate_proj", "up_proj", "gate_up_proj", "fc1", "c_fc", "w1", "w3")


@dataclass(frozen=True)
class Footprint:
    """Bytes at the peak of a step; the parts sum to it."""

    weights_bytes: int
    adapter_bytes: int
    optimizer_bytes: int
    gradients_bytes: int
    activations_bytes: int
    logits_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Their sum."""
        return (
            self.weights_bytes
            + self.adapter_bytes
            + self.optimizer_bytes
            + self.gradients_bytes
            + self.activations_bytes
            + self.logits_bytes
        )


def weights_bytes(shapes: Shapes, adapted: Sequence[Matrix], how: How) -> int:
    """Bytes of the base in memory, as `model.compute` leaves it and adapters keep it."""
    own = {matrix.path for matrix in adapted}
    total = shapes.other_bytes + (shapes.other_half_bytes if how.on_cpu else 0)
    for matrix in shapes.matrices:
        total += _matrix_bytes(matrix, how, matrix.path in own)
    return total


def adapter_parameters(matrix: Matrix, how: How) -> int:
    """Numbers that an adapter of one matrix learns."""
    groups = matrix.columns // matrix.group_size if matrix.group_size else 0
    if how.adapter == "grid":
        return 2 * how.rank * (groups + matrix.rows) * matrix.experts
    if how.adapter == "qalora":
        table = matrix.block is None and "embed" in matrix.path
        ends = groups + matrix.columns if table else groups + matrix.rows
        return how.rank * ends * matrix.experts
    lengths = matrix.rows if how.adapter == "dora" else 0
    return (how.rank * (matrix.rows + matrix.columns) + lengths) * matrix.experts


def parameters(adapted: Sequence[Matrix], how: How) -> int:
    """Numbers that an adapter learns."""
    return how.norm_parameters + sum(adapter_parameters(matrix, how) for matrix in adapted)


def step_footprint(
    shapes: Shapes, adapted: Sequence[Matrix], how: How, groups: Sequence[Group]
) -> Footprint:
    """The peak of a step computed as `groups`."""
    adapter = 4 * parameters(adapted, how)
    optimizer = int(MOMENTS.get(how.optimizer, 2.0) * adapter)
    activations, logits = max((_group(shapes, adapted, how, g) for g in groups), key=sum)
    count = sum(len(group.rectangles) + (group.prefix is not None) for group in groups)
    # The sum so far, what is added to it, and what other lanes have ready.
    gradients = adapter * (1 if count == 1 else 1 + min(count, how.lanes))
    update = int(adapter * UPDATE_COPIES)
    base = weights_bytes(shapes, adapted, how)
    activations += _held_bytes(adapted, how)
    if update > gradients + activations + logits:
        return Footprint(base, adapter, optimizer, update, 0, 0)
    return Footprint(base, adapter, optimizer, gradients, int(activations), int(logits))


def step_flops(shapes: Shapes, adapted: Sequence[Matrix], how: How, rectangle: Rectangle) -> float:
    """Floating-point operations of forward and backward, the weights themselves not learned."""
    positions, total = rectangle.positions, 0.0
    for block in shapes.blocks():
        for matrix in block:
            active = matrix.numbers / matrix.experts * _times(matrix, shapes)
            total += 4 * active * positions
    again = recomputed_blocks(shapes.layers, positions, how.kept_tokens) / shapes.layers
    total *= 1 + 0.5 * (1.0 if positions > how.at_once_tokens else again)
    total += 6.0 * positions * sum(adapter_parameters(m, how) / m.experts for m in adapted)
    width = shapes.layers * shapes.heads * shapes.head_dim
    total += 12.0 * width * rectangle.seen * positions
    return total + 4.0 * shapes.hidden * shapes.vocabulary * rectangle.learned


def kept_per_position(
    shapes: Shapes, adapted: Sequence[Matrix], how: How, rectangle: Rectangle
) -> tuple[float, float]:
    """Bytes per position that blocks keep until their backward pass, and for its duration.

    The second is what a checkpointed block makes again, above what the last ones, gone by then,
    kept besides; the logits are gone, too.
    """
    own = {matrix.path for matrix in adapted}
    blocks = [
        _block_bytes(shapes, block, shapes.norms.get(number, {}), own, how, rectangle.seen)
        for number, block in enumerate(shapes.blocks())
    ]
    count = recomputed_blocks(len(blocks), rectangle.positions, how.kept_tokens)
    if not count:
        return sum(blocks), 0.0
    inputs, kept = count * shapes.hidden * _item_bytes(shapes, how), sum(blocks[count:])
    return float(inputs + kept), max(0.0, max(blocks[:count]) - kept)


def _group(
    shapes: Shapes, adapted: Sequence[Matrix], how: How, group: Group
) -> tuple[float, float]:
    """(activations, logits) of the micro-batches that stand in memory together."""
    rectangles = group.rectangles
    alone = [r for r in rectangles if group.prefix is None and r.positions > how.at_once_tokens]
    parts = [_computing(shapes, adapted, how, r) for r in rectangles if r not in alone]
    parts.sort(key=sum, reverse=True)
    if group.prefix is None and len(rectangles) == 1 and parts and rectangles[0].is_one_sequence:
        # In a part for each lane, which seldom stand at their peaks together.
        kept, chunk = parts[0]
        spared = (1 - LANE_SHARE) * (1 - 1 / how.lanes)
        parts = [(kept - spared * _work(shapes, how, rectangles[0]), chunk)]
    activations = logits = 0.0
    for lane, (kept, chunk) in enumerate(parts[: how.lanes]):
        share = 1.0 if lane == 0 else LANE_SHARE
        activations += share * kept
        logits += share * chunk
    for rectangle in alone:
        kept, chunk = _at_once(shapes, adapted, how, rectangle)
        if kept + chunk > activations + logits:
            activations, logits = kept, chunk
    if group.prefix is not None:
        before = _computing(shapes, adapted, how, group.prefix)
        held = kept_per_position(shapes, adapted, how, group.prefix)[0] * group.prefix.positions
        # Its own pass ends in work space and logits, too.
        if sum(before) > held + activations + logits:
            return before
        activations += held
    return activations, logits


def _computing(
    shapes: Shapes, adapted: Sequence[Matrix], how: How, rectangle: Rectangle
) -> tuple[float, float]:
    """Bytes of one micro-batch: (activations, what logits take above the work space)."""
    positions = rectangle.positions
    item = _item_bytes(shapes, how)
    held, again = kept_per_position(shapes, adapted, how, rectangle)
    kept = held * positions
    kept += EMBEDDING_WORK * shapes.hidden * positions * item
    work = _work(shapes, how, rectangle)
    work += _weight_work(shapes, adapted, how) + again * positions
    # The hidden states that meet the head, and their gradient.
    kept += 2 * item * rectangle.learned * shapes.hidden
    logits = LOGITS_COPIES * 4 * min(rectangle.learned, how.chunk_rows) * shapes.vocabulary
    return kept + work, max(0.0, logits - work)


def _work(shapes: Shapes, how: How, rectangle: Rectangle) -> float:
    """Bytes that a block's backward pass works in."""
    item = _item_bytes(shapes, how)
    query, key = shapes.heads * shapes.head_dim, shapes.kv_heads * shapes.head_dim
    mlp = max((m.rows * _times(m, shapes) for m in shapes.matrices if _is_mlp_in(m)), default=0)
    blocks = rectangle.seen / ATTENTION_BLOCK if how.on_cpu else 1.0
    scores = 0.0 if how.on_cpu else 2.0 * shapes.heads * rectangle.seen
    return (
        item
        * rectangle.positions
        * max(
            MLP_WORK * mlp + (HIDDEN_WORK - EMBEDDING_WORK) * shapes.hidden,
            QUERY_WORK * query
            - EMBEDDING_WORK * shapes.hidden
            + KEY_WORK * key * (1 + blocks)
            + scores,
        )
    )


def _at_once(
    shapes: Shapes, adapted: Sequence[Matrix], how: How, rectangle: Rectangle
) -> tuple[float, float]:
    """`_computing` of a row that is computed alone, a block at a time."""
    positions = rectangle.positions
    query, key = shapes.heads * shapes.head_dim, shapes.kv_heads * shapes.head_dim
    kept = 4.0 * positions * shapes.layers * (shapes.hidden + query + shapes.heads)
    kept += 4 * positions * AT_ONCE_ENDS * shapes.hidden
    mlp = max((m.rows * _times(m, shapes) for m in shapes.matrices if _is_mlp_in(m)), default=0)
    block = AT_ONCE_MLP * mlp + AT_ONCE_HIDDEN * shapes.hidden + AT_ONCE_HEADS * (query + key)
    work = 4.0 * positions * block
    kept += 8.0 * rectangle.learned * shapes.hidden
    logits = AT_ONCE_LOGITS * 4 * min(rectangle.learned, how.chunk_rows) * shapes.vocabulary
    return kept + work, max(0.0, logits - work)


def _block_bytes(
    shapes: Shapes,
    block: Sequence[Matrix],
    norms: Mapping[str, int],
    own: Collection[str],
    how: How,
    seen: float,
) -> float:
    """Bytes per position that one block keeps."""
    query, key = shapes.heads * shapes.head_dim, shapes.kv_heads * shapes.head_dim
    inputs: dict[str, float] = {}
    outputs = ranks = casts = 0.0
    attends = gates = False
    for matrix in block:
        last, times = matrix.name.rsplit(".", 1)[-1], _times(matrix, shapes)
        group = "attention" if last in _ATTENTION_IN else "mlp" if _is_mlp_in(matrix) else last
        # An adapter's gradient needs the input of its layer, which its siblings share.
        if matrix.path in own:
            inputs[f"{group}{matrix.experts > 1}"] = matrix.columns * times
            casts += matrix.columns * times
            ranks += 0 if how.adapter == "grid" else how.rank * times
            outputs += DORA_OUTPUTS * matrix.rows * times if how.adapter == "dora" else 0
        if last in _ATTENTION_IN or _is_mlp_in(matrix):
            outputs += matrix.rows * times
        attends = attends or last in _ATTENTION_IN
        gates = gates or (_is_mlp_in(matrix) and "gate" in last)
        if not (last in _ATTENTION_IN or _is_mlp_in(matrix) or last in ("o_proj", "down_proj")):
            # A layer of another kind of block: what follows it is taken to need its output.
            outputs += matrix.rows * times
    for name, size in (norms or {"before": shapes.hidden, "between": shapes.hidden}).items():
        outputs += query if "q_norm" in name else key if "k_norm" in name else size
    item = _item_bytes(shapes, how)
    total = item * (sum(inputs.values()) + outputs) + 4 * ranks
    if attends:
        total += item * (shapes.heads * seen + (ATTENTION_OUTPUTS * query if how.on_cpu else 0))
    if item < 4 and how.adapter != "grid":
        # Each low-rank product makes a float32 copy of its input, and keeps it.
        total += 4 * casts
    return total


def seen_keys(lengths: Sequence[int], shared: int, on_cpu: bool, window: int | None) -> float:
    """Keys computed per position: sequences of `lengths` in one row, each after `shared` tokens.

    A CPU leaves out what a causal mask hides but for blocks of queries; a GPU computes the row.
    """
    if not on_cpu:
        return float(sum(lengths) + shared)
    total = sum(n * (n + min(n, ATTENTION_BLOCK)) / 2 for n in lengths)
    if window is not None:
        total = sum(min(n * (n + min(n, ATTENTION_BLOCK)) / 2, n * window) for n in lengths)
    return shared + total / max(1, sum(lengths))


def _matrix_bytes(matrix: Matrix, how: How, adapted: bool) -> int:
    wide = 2 if how.on_cpu and matrix.half else 1
    if matrix.bits is None:
        return matrix.stored_bytes * wide
    floats = matrix.numbers * (4 if how.on_cpu else 2)
    codes = matrix.stored_bytes - matrix.grid_bytes
    table = matrix.block is None and "embed" in matrix.path
    held_in_floats = how.dense and (how.resident or table or matrix.experts > 1)
    if adapted and how.adapter == "grid":
        # Codes of a byte take the place of floats, and the grid stays in its own type.
        return (matrix.numbers if held_in_floats else codes) + matrix.grid_bytes
    kept = matrix.grid_bytes if adapted and how.adapter == "qalora" else 0
    if held_in_floats:
        return floats + kept
    return codes + matrix.grid_bytes * wide + kept


def _weight_work(shapes: Shapes, adapted: Sequence[Matrix], how: How) -> float:
    """Bytes of weights that are made for one product and go after it."""
    own = {m.path for m in adapted} if how.adapter == "grid" else set()
    made = [
        m.numbers
        for m in shapes.matrices
        if m.bits and how.dense and (m.path in own or not how.resident) and m.block is not None
    ]
    return WEIGHT_COPIES * (4 if how.on_cpu else 2) * max(made, default=0)


def _held_bytes(adapted: Sequence[Matrix], how: How) -> int:
    """Tuned weights that a grid adapter makes once per step, where they are computed as floats."""
    held = sum(m.numbers for m in adapted if m.experts == 1 and (how.resident or m.block is None))
    return (4 if how.on_cpu else 2) * held if how.dense and how.adapter == "grid" else 0


def _item_bytes(shapes: Shapes, how: How) -> int:
    return 2 if shapes.half and not how.on_cpu else 4


def _times(matrix: Matrix, shapes: Shapes) -> int:
    """How often a position passes a layer: experts are several."""
    return min(shapes.experts_per_token, matrix.experts) if matrix.experts > 1 else 1


def _is_mlp_in(matrix: Matrix) -> bool:
    return matrix.block is not None and matrix.name.rsplit(".", 1)[-1] in _MLP_IN


def parts(footprint: Footprint) -> Mapping[str, int]:
    """The breakdown by name."""
    return {name.removesuffix("_bytes"): value for name, value in vars(footprint).items()}
