"""House rules a reader can rely on: arrows point down, names say something, files stay short.

cli > studio > api > {training, inference, export} > {dataset, model} > kit
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mlx_itune"
LAYER = {"kit": 1, "dataset": 2, "model": 2, "training": 3, "inference": 3, "export": 3}
LAYER |= {"api": 4, "studio": 5, "cli": 6}
MLX = ("mlx", "mlx_lm")
HEAVY = (*MLX, "numpy", "transformers", "tokenizers", "huggingface_hub", "rich", "jinja2")
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
MAX_LINES = 500
MAX_PARAMETERS = 9
# What a file of the command line may import at its top; flags are made of the tables of settings.
LIGHT = (*sys.stdlib_module_names, "click", "mlx_itune.kit", "mlx_itune.cli")
TABLES = (
    "mlx_itune.training.settings",
    "mlx_itune.dataset.cleaning.plan",
    "mlx_itune.dataset.importing.plan",
    "mlx_itune.dataset.templating.plan",
)

MODULES = sorted(PACKAGE.rglob("*.py"))
OURS = MODULES + sorted(
    path for folder in ("tests", "benchmarks", "starter") for path in (ROOT / folder).rglob("*.py")
)


@functools.cache
def trees() -> dict[Path, ast.Module]:
    """Of every module; parsed when asked for, as Python's garbage collector looks at each node."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


@dataclass(frozen=True)
class Import:
    """One imported module; `top` if the import runs when its file is imported."""

    module: str
    line: int
    top: bool

    def within(self, *packages: str) -> bool:
        return any(self.module == p or self.module.startswith(p + ".") for p in packages)


def imports(node: ast.AST, top: bool = True) -> Iterator[Import]:
    """Every import of a file, those inside functions too."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, node.lineno, top)
    elif isinstance(node, ast.ImportFrom):
        assert not node.level, f"imports are absolute: {ast.unparse(node)}"
        # `from mlx_itune import model` names a module as much as `import mlx_itune.model`.
        for alias in node.names:
            yield Import(f"{node.module}.{alias.name}", node.lineno, top)
    top &= not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    top &= not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    for child in ast.iter_child_nodes(node):
        yield from imports(child, top)


def folder_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def points_up(here: str, i: Import) -> bool:
    package, _, rest = i.module.partition(".")
    there = rest.partition(".")[0] if package == "mlx_itune" else ""
    return there in LAYER and here not in ("", there) and LAYER[here] <= LAYER[there]


FORBIDDEN: dict[str, Callable[[str, Import], bool]] = {
    "a layer imports only lower ones, never a sibling": points_up,
    "dataset and kit run without MLX": lambda here, i: (
        here in ("dataset", "kit") and i.within(*MLX)
    ),
    "mlx_lm is reached through mlx_itune.model": lambda here, i: (
        here != "model" and i.within("mlx_lm")
    ),
    "torch belongs to tests/parity and to scripts": lambda _, i: i.within("torch", "torchvision"),
    "a command imports what is heavy when it runs": lambda here, i: (
        here == "cli" and i.top and not i.within(*LIGHT, *TABLES, "mlx_itune.__version__")
    ),
}


@pytest.mark.parametrize("rule", FORBIDDEN)
def test_imports_keep_the_rules(rule: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{i.line}: imports {i.module}"
        for path in MODULES
        for i in imports(trees()[path])
        if FORBIDDEN[rule](folder_of(path), i)
    ]
    assert not wrong, "\n".join([rule, *wrong])


def test_imports_inside_functions_and_for_types_are_not_at_the_top() -> None:
    source = "import a\nif TYPE_CHECKING:\n    import b\ndef f():\n    from c import d\n"
    found = [(i.module, i.top) for i in imports(ast.parse(source))]
    assert found == [("a", True), ("b", False), ("c.d", False)]


def test_importing_the_command_line_loads_nothing_heavy() -> None:
    code = (
        f"import sys, mlx_itune.cli, {', '.join(TABLES)}; "
        "print(*sorted({m.split('.')[0] for m in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & set(HEAVY)


def test_names_say_something_and_every_folder_has_a_layer() -> None:
    paths = [*MODULES, *(p for p in PACKAGE.rglob("*") if p.is_dir())]
    empty = [str(path.relative_to(ROOT)) for path in paths if path.stem in EMPTY_NAMES]
    assert not empty, f"name these for what they do: {empty}"
    folders = {folder_of(path) for path in MODULES} - {""}
    assert folders <= LAYER.keys(), f"give {folders - LAYER.keys()} a layer in {__file__}"


def test_files_stay_a_page_or_three() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in OURS}
    long = {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > MAX_LINES}
    assert not long, f"more than {MAX_LINES} lines: {long}"


def test_no_function_takes_ten_parameters() -> None:
    long = {}
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                taken = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                names = [a.arg for a in taken if a.arg not in ("self", "cls")]
                if len(names) > MAX_PARAMETERS:
                    long[f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"] = len(names)
    assert not long, f"pass one record instead: {long}"


def commands(command: click.Command, *names: str) -> Iterator[tuple[str, click.Command]]:
    """Every command below this one, by its full name."""
    if not isinstance(command, click.Group):
        yield " ".join(names), command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        assert child is not None and child.name == name, f"{names} {name} is another command"
        yield from commands(child, *names, name)


def test_every_command_shows_an_example_and_takes_json_and_offline() -> None:
    from mlx_itune.cli import cli

    lacking = {}
    for name, command in commands(cli, "mlx-itune"):
        options = {option for parameter in command.params for option in parameter.opts}
        missing = {"--json", "--offline"} - options
        if "Example" not in command.get_help(click.Context(command, info_name=name)):
            missing.add("an Example in its help")
        if missing:
            lacking[name] = sorted(missing)
    assert not lacking, f"commands lack: {lacking}"
