"""House rules a reader can rely on: arrows point down, names say something, files stay short.

cli > {training, inference, export} > {dataset, model} > kit
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mlx_itune"
LAYER = {"kit": 1, "dataset": 2, "model": 2, "training": 3, "inference": 3, "export": 3, "cli": 4}
MLX = ("mlx", "mlx_lm")
HEAVY = (*MLX, "numpy", "transformers", "tokenizers", "huggingface_hub", "rich", "jinja2")
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
MAX_LINES = 500
MAX_PARAMETERS = 9

MODULES = sorted(PACKAGE.rglob("*.py"))
OURS = MODULES + sorted(
    path for folder in ("tests", "benchmarks", "starter") for path in (ROOT / folder).rglob("*.py")
)


@dataclass(frozen=True)
class Import:
    """One imported module, absolute; `top` if the import runs when its file is imported."""

    module: str
    line: int
    top: bool

    def within(self, *packages: str) -> bool:
        return any(self.module == p or self.module.startswith(p + ".") for p in packages)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports(source: str, module: str, *, is_package: bool) -> Iterator[Import]:
    """Every import of a file, those inside functions too, relative ones resolved."""

    def absolute(node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        base = parts[: len(parts) - node.level + is_package]
        return ".".join([*base, *([node.module] if node.module else [])])

    def visit(node: ast.AST, top: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, top)
        elif isinstance(node, ast.ImportFrom):
            # `from mlx_itune import model` names a module as much as `import mlx_itune.model`.
            for alias in node.names:
                yield Import(f"{absolute(node)}.{alias.name}", node.lineno, top)
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, top and not deferred and not is_type_checking(node))

    yield from visit(ast.parse(source), True)


def imports_of(path: Path) -> Iterator[Import]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    name = ".".join(parts[:-1] if is_package else parts)
    return imports(path.read_text(encoding="utf-8"), name, is_package=is_package)


def part_of(module: str) -> str:
    """`mlx_itune.model.adapters` -> `model`; the package's own files -> ``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "mlx_itune" else ""


def offences(rule: str, found: list[tuple[Path, Import]]) -> str:
    lines = [f"{path.relative_to(ROOT)}:{i.line}: imports {i.module}" for path, i in found]
    return "\n".join([rule, *lines])


def folder_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def test_reads_imports_as_python_does() -> None:
    source = (
        "from . import lora\nfrom ..kit.errors import ModelError\n"
        "if TYPE_CHECKING:\n    import numpy\n"
        "def f():\n    import mlx.core as mx\n"
    )
    found = list(imports(source, "mlx_itune.model.base", is_package=False))
    assert [(i.module, i.top) for i in found] == [
        ("mlx_itune.model.lora", True),
        ("mlx_itune.kit.errors.ModelError", True),
        ("numpy", False),
        ("mlx.core", False),
    ]
    (inside,) = imports("from .lora import attach", "mlx_itune.model", is_package=True)
    assert inside.module == "mlx_itune.model.lora.attach"


def test_every_folder_has_a_layer() -> None:
    folders = {folder_of(path) for path in MODULES} - {""}
    assert folders <= LAYER.keys(), f"give {folders - LAYER.keys()} a layer in {__file__}"


def test_arrows_point_down() -> None:
    wrong = [
        (path, i)
        for path in MODULES
        for i in imports_of(path)
        if (here := folder_of(path)) and (there := part_of(i.module)) in LAYER
        if here != there and LAYER[here] <= LAYER[there]
    ]
    assert not wrong, offences("a layer imports only lower ones, never a sibling:", wrong)


def test_dataset_and_kit_know_no_mlx() -> None:
    wrong = [
        (path, i)
        for path in MODULES
        if folder_of(path) in ("dataset", "kit")
        for i in imports_of(path)
        if i.within(*MLX)
    ]
    assert not wrong, offences("dataset and kit run without MLX:", wrong)


def test_only_model_imports_mlx_lm() -> None:
    wrong = [
        (path, i)
        for path in MODULES
        if folder_of(path) != "model"
        for i in imports_of(path)
        if i.within("mlx_lm")
    ]
    assert not wrong, offences("mlx_lm is reached through mlx_itune.model:", wrong)


def test_the_package_knows_no_torch() -> None:
    wrong = [
        (path, i) for path in MODULES for i in imports_of(path) if i.within("torch", "torchvision")
    ]
    assert not wrong, offences("torch belongs to tests/parity and to scripts:", wrong)


def test_cli_files_import_nothing_heavy_at_the_top() -> None:
    light = (*sys.stdlib_module_names, "click", "mlx_itune")
    # Flags are made of the tables of settings.
    settings = (
        "mlx_itune.training.settings",
        "mlx_itune.dataset.importing.plan",
        "mlx_itune.dataset.templating.plan",
    )
    wrong = [
        (path, i)
        for path in MODULES
        if folder_of(path) == "cli"
        for i in imports_of(path)
        if i.top
        if not i.within(*settings)
        if not i.within(*light) or part_of(i.module) in LAYER.keys() - {"kit", "cli"}
    ]
    assert not wrong, offences("a command imports what is heavy when it runs:", wrong)


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    code = (
        "import sys, mlx_itune.cli, mlx_itune.training.settings; "
        "import mlx_itune.dataset.importing.plan, mlx_itune.dataset.templating.plan; "
        "print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & set(HEAVY)


def test_names_say_something() -> None:
    empty = [
        str(path.relative_to(ROOT))
        for path in [*MODULES, *(p for p in PACKAGE.rglob("*") if p.is_dir())]
        if path.stem in EMPTY_NAMES
    ]
    assert not empty, f"name these for what they do: {empty}"


def test_files_stay_a_page_or_three() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in OURS}
    long = {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > MAX_LINES}
    assert not long, f"more than {MAX_LINES} lines: {long}"


def test_no_function_takes_ten_parameters() -> None:
    long = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                names = [a.arg for a in taken if a.arg not in ("self", "cls")]
                if len(names) > MAX_PARAMETERS:
                    long[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = len(names)
    assert not long, f"pass one record instead: {long}"


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command of the console script, by its full name."""
    from mlx_itune import cli

    root = next(value for value in vars(cli).values() if isinstance(value, click.Group))

    def walk(command: click.Command, names: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
        if not isinstance(command, click.Group):
            yield " ".join(names), command
            return
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None, f"{' '.join((*names, name))} is listed and cannot be loaded"
            yield from walk(child, (*names, name))

    return walk(root, ("mlx-itune",))


def test_every_command_shows_an_example_and_takes_json_and_offline() -> None:
    lacking = {}
    for name, command in commands():
        options = {option for parameter in command.params for option in parameter.opts}
        missing = {"--json", "--offline"} - options
        if "Example" not in command.get_help(click.Context(command, info_name=name)):
            missing.add("an Example in its help")
        if missing:
            lacking[name] = sorted(missing)
    assert not lacking, f"commands lack: {lacking}"
