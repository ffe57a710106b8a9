"""Numbers and lists as people read them: the same words in every message, table and page."""

from __future__ import annotations

import math
from collections.abc import Iterable

from mlx_itune.kit.errors import closest


def size(count_bytes: float) -> str:
    """A size in units of a thousand: "512 bytes", "2.8 MB", "1.4 GB"."""
    for unit, bytes_each in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count_bytes >= 0.9995 * bytes_each:
            return f"{count_bytes / bytes_each:,.1f} {unit}"
    return count(round(count_bytes), "byte")


def duration(elapsed_s: float) -> str:
    """A time: "4.2 s", "3 min 05 s", "2 h 14 min"."""
    if elapsed_s < 59.95:
        return f"{elapsed_s:.1f} s"
    minutes, seconds = divmod(round(elapsed_s), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """ "1 row", "3,204 rows"; `plural` where it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def listing(items: Iterable[object], most: int = 3) -> str:
    """ "a, b, c and 4 more"; of an iterable that is empty, an empty text."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def number(value: float | None, digits: int = 4) -> str:
    """A loss or a divergence; a dash where nothing was measured."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def percent(share: float | None) -> str:
    """0.925 as "92.5 %"; a dash where nothing was measured."""
    return "-" if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def brief(said: object, most: int = 300) -> str:
    """What an error says, on one line of at most `most` characters; if nothing, its kind."""
    return " ".join(str(said).split())[:most] or type(said).__name__


def did_you_mean(name: str, options: Iterable[str]) -> str | None:
    """ "did you mean train?", or None where no option is near, nor what another tool calls so."""
    options = list(options)
    near = name_here(name, options) or closest(name, options)
    return f"did you mean {near}?" if near else None


def name_here(name: str, options: Iterable[str]) -> str | None:
    """The option that is `name`, or that another tool calls so; dashes and case do not count."""

    def folded(text: str) -> str:
        return text.lstrip("-").lower().replace("-", "_")

    wanted = {folded(name), _ELSEWHERE.get(folded(name))}
    return next((option for option in options if folded(option) in wanted), None)


# What mlx-lm, PEFT, transformers, axolotl and LLaMA-Factory call our settings.
_ELSEWHERE = {
    theirs: ours
    for ours, names in {
        "adapter": "fine_tune_type train_type finetuning_type adapter_type",
        "alpha": "scale lora_alpha lora_scale",
        "batch_size": "per_device_train_batch_size micro_batch_size bsz",
        "clip_norm": "max_grad_norm gradient_clipping grad_clip",
        "data": "dataset dataset_path train_file datasets",
        "dropout": "lora_dropout",
        "early_stopping": "patience early_stopping_patience",
        "epochs": "num_epochs num_train_epochs n_epochs",
        "eval_every": "steps_per_eval eval_steps val_interval",
        "gradient_checkpointing": "grad_checkpoint gradient_checkpoint activation_checkpointing",
        "keep": "save_total_limit",
        "keys": "target_modules lora_target lora_target_modules modules",
        "learning_rate": "lr peak_lr max_lr",
        "max_length": "max_seq_length max_seq_len seq_len sequence_len cutoff_len max_len",
        "max_tokens": "max_new_tokens num_predict n_predict",
        "model": "base_model model_name_or_path model_path base",
        "num_layers": "lora_layers layers num_lora_layers",
        "optimizer": "optim",
        "out": "adapter_path output_dir output save_path adapter_out",
        "packing": "sample_packing pack",
        "rank": "r lora_r lora_rank",
        "save_every": "save_steps steps_per_save",
        "schedule": "lr_scheduler_type lr_scheduler lr_schedule scheduler",
        "steps": "iters max_steps iterations",
        "temperature": "temp",
        "template": "chat_template prompt_template",
        "warmup": "warmup_ratio warmup_steps",
        "weight_decay": "wd",
    }.items()
    for theirs in names.split()
}
