"""What may import what, so that no cycle can form; and imports stay cheap."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "distill_jax"

_LEAF = {"types"}
_MIDDLE = {"core", "losses", "types"}
_HOST = {"parallel", "gradients", "core", "losses", "artifact", "types"}
_AFTER = {"artifact", "evaluate", "types"}
ALLOWED = {
    "__main__": set(),
    "types": set(),
    "core": _LEAF,
    "losses": _LEAF,
    "models": _LEAF,
    "data": _LEAF,
    "queries": _LEAF,
    "selection": _LEAF,
    "artifact": _LEAF,
    "checkpoints": _LEAF,
    "gradients": _MIDDLE,
    "objectives": _MIDDLE,
    "windows": _MIDDLE,
    "compact": {"artifact", "types"},
    "scores": set(),
    "starts": {"selection", "types"},
    "parallel": _MIDDLE,
    "evaluate": _HOST,
    "loop": _HOST | {"checkpoints"},
    "task": {"data", "evaluate", "losses", "models", "types"},
    "results": {"schema"},
    "schema": set(),
    "forms": {"compact", "types"},
    "study": {"results"},
    "active": {"evaluate", "queries", "checkpoints", "losses", "types"},
    "decode": _AFTER,
    "report": _AFTER | {"decode", "results", "scores", "statistics", "task"},
    "statistics": _AFTER,
}
HEAVY = {
    "array_record",
    "matplotlib",
    "optuna",
    "orbax",
    "pandas",
    "pyarrow",
    "sklearn",
    "sqlalchemy",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "torch",
}


def unit(module: str) -> str:
    """`distill_jax.data.files` belongs to `data`: a folder counts as one."""
    return (module.split(".") + ["__init__"])[1]


def imported(source: str, module: str, is_package: bool) -> set[str]:
    """The units of distill_jax that a module's text imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".") if node.level else []
            up = node.level - is_package
            base = parts[: len(parts) - up] if up else parts
            name = ".".join([*base, *filter(None, [node.module])])
            if name == "distill_jax":
                found |= {f"{name}.{alias.name}" for alias in node.names}
            else:
                found.add(name)
    return {
        name if name.split(".")[0] == "experiments" else unit(name)
        for name in found
        if name.split(".")[0] in ("distill_jax", "experiments")
    }


def wrong_edges(source: str, module: str, is_package: bool = False) -> list[str]:
    here = unit(module)
    if here not in ALLOWED:
        return [f"{here} is new: say in ALLOWED what it may import"]
    allowed = ALLOWED[here] | {here}
    theirs = imported(source, module, is_package)
    return [f"{module} imports {name}" for name in sorted(theirs - allowed)]


def modules() -> dict[str, Path]:
    return {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in sorted(PACKAGE.rglob("*.py"))
    }


def test_every_import_is_allowed():
    wrong = []
    for module, path in modules().items():
        is_package = path.name == "__init__.py"
        if module == "distill_jax":
            names = imported(path.read_text(), module, is_package)
            wrong += [f"__init__ imports {n}" for n in names if "experiments" in n]
        else:
            wrong += wrong_edges(path.read_text(), module, is_package)
    assert not wrong, "\n".join(wrong)


def test_the_allowed_edges_have_no_cycle():
    left = dict(ALLOWED)
    while left:
        free = [name for name, needs in left.items() if not needs & set(left)]
        assert free, f"a cycle among {sorted(left)}"
        for name in free:
            del left[name]


@pytest.mark.parametrize(
    "source",
    [
        "import distill_jax.losses",
        "from distill_jax.losses import cross_entropy",
        "from distill_jax import losses, types",
        "from . import losses",
        "from .losses import cross_entropy",
        "def f():\n    from distill_jax import losses",
    ],
)
def test_every_way_to_import_is_seen(source):
    assert wrong_edges(source, "distill_jax.core") == [
        "distill_jax.core imports losses"
    ]


def test_folders_are_one_unit():
    assert not wrong_edges("from .files import read", "distill_jax.data.tfds")
    assert not wrong_edges("from .files import read", "distill_jax.data", True)
    assert not wrong_edges("from distill_jax.data.files import x", "distill_jax.data.b")
    assert wrong_edges("from ..core import unroll", "distill_jax.data.tfds")
    assert wrong_edges("from ..core import unroll", "distill_jax.data", True)
    assert wrong_edges("from experiments.distill import run", "distill_jax.types")
    assert wrong_edges("", "distill_jax.shiny")


def test_imports_are_cheap():
    """Of every module: what is heavy is imported where it is used."""
    code = (
        "import importlib, json, sys\n"
        f"for name in {['distill_jax', *modules()]!r}:\n"
        "    importlib.import_module(name)\n"
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    loaded = HEAVY & set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded, f"imported at the top of a module: {sorted(loaded)}"
