"""What README.md and docs/ say can be typed exists, and marked Python runs."""

import ast
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
if not README.exists():
    pytest.skip("there is no README.md yet", allow_module_level=True)
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
FENCED = re.compile(
    r"^(?P<marked><!-- run -->\n)?```(?P<language>\w+)\n(?P<body>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
PYTHON = [
    (block["body"], bool(block["marked"]))
    for block in FENCED.finditer(TEXT)
    if block["language"] == "python"
]


def commands(text: str) -> list[list[str]]:
    """The words of each command in the ```bash blocks, cut at && and ;."""
    found = []
    for block in FENCED.finditer(text):
        if block["language"] != "bash":
            continue
        for line in block["body"].replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            command: list[str] = []
            for word in [*words, "&&"]:
                if word in ("&&", ";", "|"):
                    if command:
                        found.append(command)
                    command = []
                else:
                    command.append(word)
    return found


def modules(text: str) -> list[tuple[str, list[str]]]:
    """`(module, arguments)` of each `python -m experiments...` or `benchmarks...`."""
    return [
        (words[2], words[3:])
        for words in commands(text)
        if words[:2] == ["python", "-m"]
        and words[2].split(".")[0] in ("experiments", "benchmarks")
    ]


PARSE = """
import importlib, json, sys
from absl import flags
answers = []
by_module = json.load(sys.stdin)
name = by_module["module"]
module = importlib.import_module(name)
if hasattr(module, "define_flags"):
    module.define_flags()
for arguments in by_module["cases"]:
    for flag in flags.FLAGS:
        flags.FLAGS[flag].unparse()
    try:
        rest = flags.FLAGS(["program", *arguments])
        answers.append("" if rest == ["program"] else f"not a flag: {rest[1:]}")
    except flags.Error as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def parsed(module: str, cases: list[list[str]]) -> list[str]:
    """What is wrong with each list of arguments, "" if nothing is."""
    process = subprocess.run(
        [sys.executable, "-c", PARSE],
        input=json.dumps({"module": module, "cases": cases}),
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


MODULES = sorted({module for module, _ in modules(TEXT)})


def test_commands_are_found_wherever_they_stand():
    text = """
```bash
pip install x && python -m experiments.distill --a=1 \\
    --b  # a comment
python -m benchmarks.meta_step
python -m pytest -q
```
```python
python -m experiments.nothing
```
"""
    assert modules(text) == [
        ("experiments.distill", ["--a=1", "--b"]),
        ("benchmarks.meta_step", []),
    ]


def test_the_readme_has_commands_and_code():
    assert "experiments.distill" in MODULES
    assert any(marked for _, marked in PYTHON)


@pytest.mark.parametrize("module", MODULES)
def test_commands_name_modules_and_flags_that_exist(module):
    assert importlib.util.find_spec(module) is not None
    cases = [arguments for name, arguments in modules(TEXT) if name == module]
    unknown = ["--no_such_flag=1"]
    *answers, refused = parsed(module, [*cases, unknown])
    assert answers == [""] * len(cases)
    assert "no_such_flag" in refused


def test_scripts_in_commands_exist():
    scripts = [
        words[1]
        for words in commands(TEXT)
        if words[0] == "python" and words[1].endswith(".py")
    ]
    assert [s for s in scripts if not (ROOT / s).is_file()] == []


def test_flags_in_the_text_exist():
    """`--resume` in running text is a flag of an experiment that the README names."""
    inline = re.findall(r"`(--[^`]+)`", FENCED.sub("", TEXT))
    of_absl = ("--help", "--helpfull")
    inline = [flag.replace("=FILE", "=x") for flag in inline if flag not in of_absl]
    problems = {flag: [] for flag in inline}
    for module in MODULES:
        if module.startswith("experiments."):
            cases = [[f if "=" in f or _is_bool(f) else f"{f}=x"] for f in inline]
            for flag, problem in zip(inline, parsed(module, cases), strict=True):
                problems[flag].append(problem)
    assert [flag for flag, found in problems.items() if "" not in found] == []


def _is_bool(flag: str) -> bool:
    from distill_jax import Protocol
    from experiments import cli, distill

    groups = (cli.Corpus, distill.Settings, Protocol, *cli.RECIPE)
    fields = {cli.flag_of(f): f for g in groups for f in cli.fields_of(g)}
    field = fields.get(flag.removeprefix("--").removeprefix("no"))
    return field is None or isinstance(field.default, bool)


def test_the_map_names_what_exists():
    start = TEXT.index("## Map")
    section = TEXT[start : TEXT.index("\n## ", start + 1)]
    paths = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    assert len(paths) > 5
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_links_to_files_exist():
    for page in PAGES:
        links = re.findall(r"\]\((?!https?:|#)([^)]+)\)", page.read_text("utf-8"))
        gone = [k for k in links if not (page.parent / k.split("#")[0]).exists()]
        assert gone == [], page


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python_compiles(number):
    ast.parse(PYTHON[number][0])


@pytest.mark.parametrize(
    "number", [i for i, (_, marked) in enumerate(PYTHON) if marked]
)
def test_marked_python_runs(number, tmp_path):
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", PYTHON[number][0]],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    # It ends in something true: what was distilled beats as many real sentences.
    lines = [line.split() for line in process.stdout.splitlines()]
    found = {(words[0], words[1]): float(words[-1].rstrip("%")) for words in lines}
    random, distilled = found["random", "standard"], found["distilled", "native"]
    assert 50 < random < random + 4 < distilled < found["tfidf", "standard"]


def test_compose_ends_in_a_comparison():
    script = ROOT / "examples" / "compose.py"
    assert len(script.read_text().splitlines()) <= 60
    process = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    lines = [line.split() for line in process.stdout.splitlines()]
    found = {words[0]: float(words[1].rstrip("%")) for words in lines}
    assert list(found) == ["full", "majority", "tfidf", "mine", "k-means", "unsure"]
    assert found["majority"] < min(found["mine"], found["k-means"], found["unsure"])
