"""How the next token is drawn: a record of settings for mlx-lm's samplers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import mlx.core as mx
from annotated_types import Ge, Le
from mlx_lm.sample_utils import make_logits_processors, make_sampler

_COLDEST = 1e-4

Penalty = Annotated[float, Ge(-100), Le(100)]
Tokens = Annotated[int, Ge(0), Le(1 << 20)]


@dataclass(frozen=True)
class Drawing:
    """How tokens are drawn, by mlx-lm's sample_utils; the default is greedy.

    Penalties look at the last `..._context_size` tokens, the prompt's included.
    """

    temperature: Annotated[float, Ge(0), Le(100)] = 0.0
    top_p: Annotated[float, Ge(0), Le(1)] = 1.0
    top_k: Annotated[int, Ge(0)] = 0
    min_p: Annotated[float, Ge(0), Le(1)] = 0.0
    repetition_penalty: Annotated[float, Ge(0), Le(100)] = 0.0
    repetition_context_size: Tokens = 20
    presence_penalty: Penalty = 0.0
    presence_context_size: Tokens = 20
    frequency_penalty: Penalty = 0.0
    frequency_context_size: Tokens = 20
    # Beyond float32 log-probabilities are infinite.
    logit_bias: Mapping[int, Annotated[float, Ge(-1e9), Le(1e9)]] = field(default_factory=dict)
    seed: int | None = None

    @property
    def has_own_dice(self) -> bool:
        """Whether the answer is to be a function of the seed: nothing may draw beside it."""
        return self.seed is not None and self.temperature > 0

    def sampler(self, vocabulary: int) -> Callable[[Any], Any]:
        """Log-probabilities (B, V) to tokens (B,); the greedy one is the same object each time."""
        top_k = self.top_k if self.top_k < vocabulary else 0
        # Divided by less, logits overflow.
        temperature = self.temperature if self.temperature > _COLDEST else 0.0
        made: Callable[[Any], Any] = make_sampler(temperature, self.top_p, self.min_p, 1, top_k)
        return made

    def processors(self, before: Sequence[int] = ()) -> list[Callable[[Any, Any], Any]]:
        """What changes logits (B, V), given the tokens so far (T,).

        before: the first of them, where mlx-lm gives the others only.
        """
        made: list[Callable[[Any, Any], Any]] = make_logits_processors(
            dict(self.logit_bias),
            # 1 changes nothing, and costs a pass over the logits.
            0 if self.repetition_penalty == 1 else self.repetition_penalty,
            self.repetition_context_size,
            self.presence_penalty,
            self.presence_context_size,
            self.frequency_penalty,
            self.frequency_context_size,
        )
        if not before:
            return made
        past = mx.array(list(before))

        def seeing_all(processor: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
            return lambda ids, logits: processor(mx.concatenate([past, ids]), logits)

        return [seeing_all(processor) for processor in made]
