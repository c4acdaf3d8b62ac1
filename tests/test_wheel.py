"""The wheel is enough: installed alone, it runs the experiments, by one command."""

import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from distill_jax import __main__ as command

ROOT = Path(__file__).parents[1]
# Of the interpreter that runs the wheel: no checkout is on its path.
NO_CHECKOUT = """
import os, sys
sys.path = [p for p in sys.path if not os.path.isdir(os.path.join(p, "experiments"))]
"""


def python(*arguments, **more):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        **more,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A folder with the wheel, and with what pip makes of it."""
    for needed in ("pip", "hatchling"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} builds and installs the wheel; see the extra dev")
    folder = tmp_path_factory.mktemp("wheel")
    pip = "-m", "pip", "--disable-pip-version-check"
    quiet = "--quiet", "--no-deps", "--no-index"
    build = "wheel", *quiet, "--no-build-isolation", "--wheel-dir", folder, ROOT
    done = python(*pip, *build, cwd=folder)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    done = python(*pip, "install", *quiet, "--target", folder / "installed", built)
    assert done.returncode == 0, done.stderr
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(NO_CHECKOUT)
    return built, folder / "installed"


def run(wheel, cwd, *arguments):
    """Runs Python with the wheel alone, in another folder."""
    _, installed = wheel
    path = os.pathsep.join(map(str, (installed.parent / "site", installed)))
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    return python(*arguments, cwd=cwd, env=environment)


def facts(wheel):
    """The folder of its metadata."""
    return "-".join(wheel[0].name.split("-")[:2]) + ".dist-info"


def test_a_wheel_holds_library_and_experiments_and_no_more(wheel):
    with zipfile.ZipFile(wheel[0]) as archive:
        names = [Path(name) for name in archive.namelist()]
    assert {name.parts[0] for name in names} == {"distill_jax", facts(wheel)}
    held = {name.as_posix() for name in names if name.parts[0] == "distill_jax"}
    folders = (
        ("distill_jax", ROOT / "distill_jax"),
        (
            "distill_jax/experiments",
            ROOT / "experiments",
        ),
    )
    assert held == {
        f"{base}/{path.relative_to(folder).as_posix()}"
        for base, folder in folders
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    page = {f"distill_jax/report/page/page.{kind}" for kind in ("css", "html", "js")}
    assert page | {"distill_jax/py.typed"} <= held


def test_its_metadata_has_every_extra_and_no_gigabytes_in_dev(wheel):
    with zipfile.ZipFile(wheel[0]) as archive:
        text = archive.read(f"{facts(wheel)}/METADATA").decode()
    extras = set(re.findall(r"^Provides-Extra: (\S+)$", text, re.MULTILINE))
    assert extras == set("samples bert cuda12 cuda13 tpu tune torch dev".split())
    torch = re.findall(r"^Requires-Dist: torch\b.*$", text, re.MULTILINE)
    assert len(torch) == 1 and torch[0].endswith("extra == 'torch'")
    assert "Requires-Python: >=3.11\n" in text


def test_the_wheel_lists_and_imports_its_own(wheel, tmp_path):
    code = "import distill_jax, importlib.util as u; print(distill_jax.__file__); "
    done = run(wheel, tmp_path, "-c", code + "print(u.find_spec('experiments'))")
    where, experiments = done.stdout.splitlines()
    assert Path(where).is_relative_to(wheel[1]) and experiments == "None"
    for arguments in [], ["--help"]:
        done = run(wheel, tmp_path, "-m", "distill_jax", *arguments)
        assert done.returncode == 0, done.stderr
        listed = dict(
            line.split(maxsplit=1)
            for line in done.stdout.splitlines()
            if line.startswith("  ")
        )
        assert listed == {name: told for name, (_, told) in known().items()}


def known():
    """What a checkout can run."""
    found = command.experiments()
    assert set("distill evaluate compare active tune report tables".split()) <= set(
        found
    )
    assert found["active"][0] == "experiments.active_learning"
    assert all(told.endswith(".") for _, told in found.values())
    return found


def test_an_experiment_of_the_wheel_runs_in_another_folder(wheel, tmp_path):
    (tmp_path / "words.csv").write_text(
        "text,label\n" + "".join(f"word{i % 7} thing{i},{i % 2}\n" for i in range(60))
    )
    flags = (
        "--dataset=words.csv --vectors=random --model=bag --examples_per_class=1 "
        "--real_batch=8 --real_chunk=8 --dry_run"
    ).split()
    done = run(wheel, tmp_path, "-m", "distill_jax", "distill", *flags)
    assert done.returncode == 0, done.stderr
    assert "Will learn 2 sentences" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["words.csv"]


def test_flags_and_names_reach_the_module(wheel, tmp_path):
    done = run(wheel, tmp_path, "-m", "distill_jax", "tables", "--help")
    assert "Writes the README's tables" in done.stdout and "--[no]check" in done.stdout
    done = run(wheel, tmp_path, "-m", "distill_jax", "tables", "--readme=none.md")
    assert done.returncode == 1 and "none.md" in done.stderr


def test_a_checkout_runs_the_same_from_any_folder(tmp_path):
    (tmp_path / "experiments").mkdir()  # another package of that name
    (tmp_path / "experiments" / "__init__.py").write_text("")
    run = "-m", "distill_jax", "tables", "--help"
    done = python(*run, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert "Writes the README's tables" in done.stdout, done.stderr
    assert str(ROOT / "experiments" / "tables.py") in done.stdout


def test_an_unknown_experiment_is_named(capsys):
    with pytest.raises(SystemExit, match="1"):
        command.main(["distill_jax", "distil"])
    error = capsys.readouterr().err
    assert error.startswith("error: unknown experiment 'distil', known: ablation, ")
    assert len(error.splitlines()) == 1
