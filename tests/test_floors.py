"""The house: imports point down, files stay small, and the API is the command line.

A unit is a module, or a package taken whole. A floor of the map in ``quantkit/__init__.py``
has steps: within a floor, too, an import goes only to a lower step.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from enum import Enum
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import typer

import quantkit
from quantkit.cli.app import app

PACKAGE = Path(quantkit.__file__).parent

#: Every unit once: (floor, step) -> units. Imports go to strictly smaller pairs.
FLOORS: dict[tuple[int, int], str] = {
    (0, 0): "errors types",
    (0, 1): "elements lanes",
    (1, 0): (
        "cache carried clock devices digests frontmatter given heap licences lookalikes "
        "quiet rendering resources"
    ),
    (1, 1): "compiled hub tokenization verb",
    (1, 2): "kernels",
    (1, 3): "checkpoint",
    (1, 4): "activations calls fetching scrutiny tokenizer",
    (
        2,
        0,
    ): (
        "adapter layer leftovers methods mistakes plans releases signatures shell skeleton "
        "source sourcecard staging tasks"
    ),
    (2, 1): (
        "architecture formats harness recipe records registry signing snippet statedresults sweep"
    ),
    (
        2,
        2,
    ): "amending carddata cautions finished listed modulewise observing outcomes prompts settings",
    (3, 0): "card companions evaluation planning plots provenance verification",
    (3, 1): "calibration conversion lineage registering",
    (3, 2): "gate layerwise subject",
    (3, 3): "execution outlook report",
    (3, 4): "assessment manifest remote",
    (3, 5): "comparison destination inspection",
    (3, 6): "readiness",
    (4, 0): "pipeline pushing",
    (4, 1): "benchmarking demonstration publishing",
    (5, 0): "quantkit",
    (5, 1): "cli",
    (5, 2): "__main__",
}
FLOOR_OF = {unit: floor for floor, units in FLOORS.items() for unit in units.split()}

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50  # without its docstring: explaining is never too long

VERBS = (
    "convert", "plan", "verify", "check", "check_tokenizer", "compare", "recipes", "checksums",
    "demo", "publish", "eval",
)  # fmt: skip


def modules() -> dict[str, Path]:
    """Dotted name below the package -> file; the package itself is ``quantkit``."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name or "quantkit"] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """Our own modules that a file imports, wherever in it the import stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (ours(each.name) for each in node.names if is_ours(each.name))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the floor"
            if is_ours(node.module or ""):
                yield from (imported(node.module or "", each.name) for each in node.names)


def is_ours(name: str) -> bool:
    return name.partition(".")[0] == "quantkit"


def ours(name: str) -> str:
    return name.removeprefix("quantkit.")


def imported(module: str, name: str) -> str:
    """``from module import name``: a module of that name, or something in ``module``."""
    inner = ours(f"{module}.{name}")
    return inner if inner in MODULES else ours(module)


def unit(name: str) -> str:
    return name.partition(".")[0]


def test_every_unit_has_a_floor() -> None:
    found = {unit(name) for name in MODULES}
    new, gone = sorted(found - FLOOR_OF.keys()), sorted(FLOOR_OF.keys() - found)
    assert not new, f"give {new} a floor in FLOORS, and a line in the map of quantkit/__init__.py"
    assert not gone, f"{gone} are no units any more: take them out of FLOORS and the map"


def test_the_map_names_every_unit_on_its_floor() -> None:
    """Its first column, that is: most names occur in what is said of others, too."""
    text, _, _ = (quantkit.__doc__ or "").partition("The public API")
    floor, listed = 0, []
    for digit, names in re.findall(r"^ {4}([\d ])  (\S+(?: \S+)*)", text, re.MULTILINE):
        floor = int(digit) if digit != " " else floor
        listed += [(name.removesuffix("/"), floor) for name in names.split()]
    floors = [(name, floor) for name, (floor, _) in FLOOR_OF.items() if name != "quantkit"]
    assert sorted(listed) == sorted(floors), "(name, floor): of the map in __init__.py, of FLOORS"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_point_down(name: str) -> None:
    here = unit(name)
    upward = [
        f"{name} ({FLOOR_OF[here]}) imports {each} ({FLOOR_OF[unit(each)]})"
        for each in imports(MODULES[name])
        if unit(each) != here and FLOOR_OF[unit(each)] >= FLOOR_OF[here]
    ]
    assert upward == [], "(floor, step): a lower one for what is imported, or another place for it"


def test_no_imports_go_in_a_circle() -> None:
    graph = {name: set(imports(path)) - {name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_no_module_is_named_after_a_verb_or_a_drawer() -> None:
    """No module hides a public verb, and none is a drawer for odds and ends."""
    names = {part for name in MODULES for part in name.split(".")}
    assert names & set(VERBS) == set()
    assert names & {"utils", "util", "helpers", "common", "misc", "core", "base_utils"} == set()


BENCHES = {f"bench {path.stem}": path for path in Path(__file__).parents[1].glob("bench/*.py")}


@pytest.mark.parametrize("name", [*sorted(MODULES), *sorted(BENCHES)])
def test_files_and_functions_stay_small(name: str) -> None:
    text = (MODULES | BENCHES)[name].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MAX_FILE_LINES, f"{name}: divide it by purpose"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert length(node) <= MAX_FUNCTION_LINES, f"{node.name}: divide it by purpose"


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from ``def`` to the end, less those of the docstring."""
    assert node.end_lineno is not None
    lines = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node) is not None:
        words = node.body[0]
        assert words.end_lineno is not None
        lines -= words.end_lineno - words.lineno + 1
    return lines


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_says_what_it_is(name: str) -> None:
    assert ast.get_docstring(ast.parse(MODULES[name].read_text(encoding="utf-8")))


def test_only_the_command_line_prints() -> None:
    for name, path in MODULES.items():
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
        ]
        assert not calls or unit(name) == "cli", name


def test_only_the_checkpoint_package_knows_pickle_and_nobody_loads_one() -> None:
    for name, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\btorch\.load\(|pickle\.loads?\(|trust_remote_code=True", text), name


# the public API


def test_the_public_names() -> None:
    assert quantkit.__all__ == [
        "QuantkitError",
        "Recipe",
        "Registry",
        "__version__",
        "check",
        "check_tokenizer",
        "checksums",
        "compare",
        "convert",
        "demo",
        "eval",
        "load_recipe",
        "plan",
        "publish",
        "recipes",
        "verify",
    ]
    assert all(getattr(quantkit, name) is not None for name in quantkit.__all__)
    with pytest.raises(AttributeError, match="no_such_verb"):
        quantkit.no_such_verb  # noqa: B018


@pytest.mark.parametrize("name", [*VERBS, "load_recipe"])
def test_a_verb_stays_a_function(name: str) -> None:
    """Also after everything has been imported."""
    import importlib

    for module in MODULES:
        if module.endswith("_cuda") and importlib.util.find_spec("triton") is None:
            continue
        importlib.import_module("quantkit" if module == "quantkit" else f"quantkit.{module}")
    assert inspect.isfunction(getattr(quantkit, name))
    assert inspect.getdoc(getattr(quantkit, name))


def options(verb: str) -> dict[str, object]:
    """A verb's parameters on the command line, named as in Python, with their defaults."""
    found: dict[str, object] = {}
    for each in typer.main.get_command(app).commands[verb.replace("_", "-")].params:
        name = each.opts[0].removeprefix("--").replace("-", "_")
        default = each.default.value if isinstance(each.default, Enum) else each.default
        found[name] = ... if each.required else plain(default)
    return found


def parameters(verb: str) -> dict[str, object]:
    """The same of the function; who listens and who agrees is the caller's own affair."""
    signature = inspect.signature(getattr(quantkit, verb))
    return {
        name: ... if each.default is inspect.Parameter.empty else plain(each.default)
        for name, each in signature.parameters.items()
        if name not in ("listener", "confirm")
    }


def plain(default: object) -> object:
    """Absence is ``None`` or ``()``, as each side spells it; paths are texts."""
    if isinstance(default, Path):
        return str(default)
    return None if default in ((), []) else default


@pytest.mark.parametrize(
    "verb",
    ["convert", "plan", "verify", "check", "check_tokenizer", "compare", "demo", "publish", "eval"],
)
def test_the_options_are_the_parameters(verb: str) -> None:
    given = options(verb)
    assert given.pop("json") is False
    given.pop("help", None)
    given.pop("yes", None)  # calling from Python is agreeing
    assert given == parameters(verb)


def test_every_verb_of_the_command_line_is_a_function() -> None:
    verbs = [each.replace("-", "_") for each in typer.main.get_command(app).commands]
    assert sorted(verbs) == sorted(VERBS)
