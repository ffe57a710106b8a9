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

`import mlx_itune as mi` gives the commands as functions, each loaded when it is first named.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_itune.api.answers import Generated as Generated
    from mlx_itune.api.answers import Model as Model
    from mlx_itune.api.answers import generate as generate
    from mlx_itune.api.answers import load as load
    from mlx_itune.api.answers import serve as serve
    from mlx_itune.api.grow import Grown as Grown
    from mlx_itune.api.grow import grow as grow
    from mlx_itune.api.rows import Checked as Checked
    from mlx_itune.api.rows import check as check
    from mlx_itune.api.rows import clean as clean
    from mlx_itune.api.rows import import_rows as import_rows
    from mlx_itune.api.rows import infer_schema as infer_schema
    from mlx_itune.api.rows import read_rows as read_rows
    from mlx_itune.api.rows import stats as stats
    from mlx_itune.api.scoring import Compared as Compared
    from mlx_itune.api.scoring import Evaluated as Evaluated
    from mlx_itune.api.scoring import compare as compare
    from mlx_itune.api.scoring import evaluate as evaluate
    from mlx_itune.api.select import Selected as Selected
    from mlx_itune.api.select import select as select
    from mlx_itune.api.shipping import export as export
    from mlx_itune.api.shipping import fuse as fuse
    from mlx_itune.api.shipping import import_adapter as import_adapter
    from mlx_itune.api.shipping import verify as verify
    from mlx_itune.api.shown import Shown as Shown
    from mlx_itune.api.shown import show as show
    from mlx_itune.api.sweep import Swept as Swept
    from mlx_itune.api.sweep import sweep as sweep
    from mlx_itune.api.training import plan as plan
    from mlx_itune.api.training import resume as resume
    from mlx_itune.api.training import runs as runs
    from mlx_itune.api.training import train as train
    from mlx_itune.api.tune import Tuned as Tuned
    from mlx_itune.api.tune import tune as tune
    from mlx_itune.dataset.cleaning.run import Cleaned as Cleaned
    from mlx_itune.dataset.conversation import Conversation as Conversation
    from mlx_itune.dataset.conversation import Fault as Fault
    from mlx_itune.dataset.conversation import Turn as Turn
    from mlx_itune.dataset.differences import Diff as Diff
    from mlx_itune.dataset.differences import diff as diff
    from mlx_itune.dataset.differences import versions as versions
    from mlx_itune.dataset.drafts.review import Review as Review
    from mlx_itune.dataset.importing.run import Imported as Imported
    from mlx_itune.dataset.ingest.run import Ingest as Ingest
    from mlx_itune.dataset.ingest.run import ingest as ingest
    from mlx_itune.dataset.statistics.stats import Stats as Stats
    from mlx_itune.export.artifact import Exported as Exported
    from mlx_itune.export.fusing.fuse import FuseResult as FuseResult
    from mlx_itune.kit.errors import DataError as DataError
    from mlx_itune.kit.errors import DivergedError as DivergedError
    from mlx_itune.kit.errors import ItuneError as ItuneError
    from mlx_itune.kit.errors import ModelError as ModelError
    from mlx_itune.kit.errors import ResourceError as ResourceError
    from mlx_itune.kit.errors import StorageError as StorageError
    from mlx_itune.kit.errors import UsageError as UsageError
    from mlx_itune.kit.network import go_offline as go_offline
    from mlx_itune.training.engine.memory_plan import Plan as Plan
    from mlx_itune.training.run.catalogue import Standing as Standing
    from mlx_itune.training.run.resume import Resumed as Resumed
    from mlx_itune.training.run.run import TrainResult as TrainResult
    from mlx_itune.training.settings import TrainSettings as TrainSettings

__version__ = "0.1.0"

# Where the names above are.
_FROM = {
    "api.answers": "generate load serve Generated Model",
    "api.grow": "grow Grown",
    "api.rows": "check clean import_rows infer_schema read_rows stats Checked",
    "api.scoring": "compare evaluate Compared Evaluated",
    "api.select": "select Selected",
    "api.shipping": "export fuse import_adapter verify",
    "api.shown": "show Shown",
    "api.sweep": "sweep Swept",
    "api.training": "plan resume runs train",
    "api.tune": "tune Tuned",
    "dataset.cleaning.run": "Cleaned",
    "dataset.conversation": "Conversation Fault Turn",
    "dataset.differences": "diff versions Diff",
    "dataset.drafts.review": "Review",
    "dataset.importing.run": "Imported",
    "dataset.ingest.run": "ingest Ingest",
    "dataset.statistics.stats": "Stats",
    "export.artifact": "Exported",
    "export.fusing.fuse": "FuseResult",
    "kit.errors": "DataError DivergedError ItuneError ModelError ResourceError "
    "StorageError UsageError",
    "kit.network": "go_offline",
    "training.engine.memory_plan": "Plan",
    "training.run.catalogue": "Standing",
    "training.run.resume": "Resumed",
    "training.run.run": "TrainResult",
    "training.settings": "TrainSettings",
}
_PLACES = {name: module for module, names in _FROM.items() for name in names.split()}
__all__ = sorted(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


class _Package(ModuleType):
    # A folder has the name of this verb; its import would put the folder here.
    export = property(lambda self: __getattr__("export"), lambda self, folder: None)


sys.modules[__name__].__class__ = _Package
