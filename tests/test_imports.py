"""What may import what, so that no cycle can form; and imports stay cheap."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "distill_jax"


def _of(names: str) -> set[str]:
    return set(names.split())


# Each unit and what it may import, from the bottom up.
ALLOWED = {
    "__main__": set(),
    "checkpoints": set(),
    "data": set(),
    "decode": set(),
    "locks": set(),
    "names": set(),
    "progress": set(),
    "queries": set(),
    "schema": set(),
    "scores": set(),
    "selection": set(),
    "signals": set(),
    "statistics": set(),
    "types": set(),
    "artifact": _of("types"),
    "baselines": _of("data"),
    "core": _of("types"),
    "gradients": _of("types"),
    "losses": _of("types"),
    "models": _of("types"),
    "results": _of("progress schema"),
    "starts": _of("names selection types"),
    "compact": _of("artifact types"),
    "objectives": _of("core losses types"),
    "parallel": _of("core types"),
    "study": _of("results"),
    "task": _of("data losses models names types"),
    "windows": _of("core types"),
    "contrib": _of("core objectives selection starts types windows"),
    "fit": _of("core losses parallel task types"),
    "loop": _of("checkpoints parallel signals types"),
    "recipe": _of("names objectives"),
    "learning": _of(
        "compact core gradients names objectives recipe starts task types windows"
    ),
    "protocol": _of("recipe types"),
    "train": _of("core fit losses parallel protocol task types"),
    "active": _of(
        "checkpoints data fit losses names queries recipe results selection "
        "task train types"
    ),
    "distill": _of(
        "checkpoints core learning loop names parallel recipe task train types"
    ),
    "space": _of("distill names recipe starts"),
    "stored": _of("artifact data distill names parallel results task train types"),
    "sources": _of(
        "active artifact distill names parallel queries recipe selection "
        "stored task train types"
    ),
    "compare": _of(
        "baselines locks names parallel progress results schema sources "
        "statistics task train"
    ),
    "forms": _of("artifact compact fit results sources train types"),
    "measured": _of("artifact recipe results sources stored task train"),
    "variants": _of("recipe sources"),
    "estimate": _of("compare distill names progress recipe sources task train"),
    "methods": _of("compare queries recipe selection sources task train"),
    "report": _of(
        "decode fit forms measured results schema scores sources statistics "
        "task train types"
    ),
    "tune": _of(
        "distill fit loop names progress recipe results schema selection "
        "space study task"
    ),
    "transfer": _of(
        "compare estimate measured methods names parallel report results "
        "sources task train"
    ),
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
