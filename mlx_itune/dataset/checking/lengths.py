"""What a model's template and tokenizer make of rows: refused, too long, nothing to learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlx_itune.dataset.conversation import Conversation
from mlx_itune.dataset.rendering.render import Learn, render_many
from mlx_itune.dataset.tokens.tokenizer import ChatTokenizer
from mlx_itune.kit.errors import DataError


@dataclass(frozen=True)
class TokenFault:
    """A fault of the row at `row` in its chunk."""

    row: int
    code: str
    message: str
    hint: str
    is_error: bool


def token_faults(
    rows: Sequence[Conversation], tokenizer: ChatTokenizer, learn: Learn, max_length: int
) -> Iterator[TokenFault]:
    """At most one fault per row, as training with these settings would find it."""
    for number, parts in enumerate(render_many(rows, tokenizer, learn)):
        if isinstance(parts, DataError):
            hint = parts.hint or "give turns that this template accepts, or choose --template"
            yield TokenFault(number, "template-refuses", parts.message, hint, True)
            continue
        learned = sum(int((part.weights > 0).sum()) for part in parts)
        longest = max((len(part.input_ids) for part in parts), default=0)
        if not learned:
            yield TokenFault(
                number,
                "all-masked",
                f"no token is learned with --learn {learn}",
                "give an assistant turn a weight above 0, or drop the row",
                False,
            )
        elif longest > max_length:
            inside = sum(int((part.weights[:max_length] > 0).sum()) for part in parts)
            lost = "all that is learned" if not inside else f"{learned - inside} learned tokens"
            yield TokenFault(
                number,
                "too-long",
                f"{longest:,} tokens, --max-length is {max_length:,}: cutting loses {lost}",
                "raise --max-length, or train with --too-long split",
                False,
            )
