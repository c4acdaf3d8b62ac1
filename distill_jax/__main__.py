"""Runs an experiment: python -m distill_jax compare --dataset=trec6 --budgets=1,10

A name and its flags; NAME --help lists these. Each is a module of the experiments, the
same in a wheel, where they lie inside this package, and in a checkout, beside it.
"""

import ast
import runpy
import sys
from pathlib import Path

SHORT = {"active_learning": "active", "pages": "report"}
_HERE = Path(__file__).resolve().parent


def experiments() -> dict[str, tuple[str, str]]:
    """What can be run: `{name: (module, first line of its docstring)}`."""
    in_wheel = (_HERE / "experiments").is_dir()
    folder = (_HERE if in_wheel else _HERE.parent) / "experiments"
    package = "distill_jax.experiments" if in_wheel else "experiments"
    found = {}
    for path in sorted(folder.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if '__name__ == "__main__"' in text:  # read, for importing all takes seconds
            told = ast.get_docstring(ast.parse(text)) or ""
            name = SHORT.get(path.stem, path.stem)
            found[name] = f"{package}.{path.stem}", told.partition("\n")[0]
    return dict(sorted(found.items()))


def main(argv: list[str]) -> None:
    """Runs the experiment that the first argument names, or lists them all.

    Args:
        argv: as `sys.argv`. A module's own name, such as active_learning, does too.

    Raises:
        SystemExit: for a name that is not known, and as the experiment does.
    """
    known = experiments()
    if argv[1:2] in ([], ["--help"], ["-h"]):
        print(
            "python -m distill_jax NAME [--FLAG=VALUE ...]; NAME --help lists flags\n"
        )
        for name, (_, told) in known.items():
            print(f"  {name:16} {told}")
        return
    name = SHORT.get(argv[1], argv[1])
    if name not in known:
        print(
            f"error: unknown experiment {argv[1]!r}, known: {', '.join(known)}",
            file=sys.stderr,
        )
        sys.exit(1)
    module, _ = known[name]
    if module.startswith("experiments."):  # before any other package of that name
        sys.path.insert(0, str(_HERE.parent))
    sys.argv = [argv[0], *argv[2:]]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv)
