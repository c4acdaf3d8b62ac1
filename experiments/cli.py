"""Flags and settings of the experiments, and how their processes begin and end.

Every setting is written once, as a field with its help in the library; here it becomes
a flag, and flags become settings. Explicit flags win over a preset, a preset over what
is best for the network, and that over the defaults.
"""

import dataclasses
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import distill_jax as dj
from distill_jax import data, parallel, results
from distill_jax.loop import Interrupted, Progress
from distill_jax.models import MODELS
from distill_jax.recipe import Inner, Meta, Recipe, Start, best_recipe, setting
from distill_jax.task import Task, model_maker, told


@dataclasses.dataclass(frozen=True)
class Corpus:
    """What is to be learnt: a corpus, how it is read, and a network."""

    dataset: str = setting(
        "rotten_tomatoes",
        "rotten_tomatoes, imdb, bbc_news, tfds:NAME, or the path of a folder or file.",
    )
    text_column: str | None = setting(None, "Column of the texts in your file.")
    label_column: str | None = setting(None, "Column of the labels in your file.")
    data_dir: str | None = setting(None, "Where TFDS keeps its datasets.")
    download: bool = setting(False, "Let TFDS download what is not on disk.")
    vectors: str = setting("glove", "glove, random, or a file of word vectors.")
    length: int = setting(40, "Tokens of a sentence, L.")
    model: str = setting("bag", "The network.", choices=tuple(sorted(MODELS)))
    model_settings: Mapping[str, Any] = setting(
        {}, "A setting of the network, NAME=JSON_VALUE; repeat for more."
    )
    seed: int = setting(0, "Of everything random.")

    def __post_init__(self):
        if self.length < 1:
            raise ValueError(f"length must be at least 1, got {self.length}")
        model_maker(self.model, self.model_settings)

    @property
    def name(self) -> str:
        """A short name for folders."""
        return Path(self.dataset).name.replace(":", "-")

    @property
    def source(self) -> dict[str, Any]:
        """Where it came from, for the card of an artefact."""
        names = ("dataset", "text_column", "label_column", "vectors")
        return {name: getattr(self, name) for name in names}

    def load(self) -> data.Dataset:
        """Reads the corpus."""
        return data.load(
            self.dataset,
            text_column=self.text_column,
            label_column=self.label_column,
            data_dir=self.data_dir,
            download=self.download,
        )

    def task(
        self,
        say: Callable[[str], None] = print,
        *,
        prepare: Callable[[data.Dataset], data.Dataset] = lambda dataset: dataset,
        **more: Any,
    ) -> Task:
        """The task; says what was read.

        Args:
            say: where text goes.
            prepare: changes the corpus before its words are looked up.
            more: further settings of the network.
        """
        task = dj.make_task(
            prepare(self.load()),
            self.model,
            embedder=self.vectors,
            length=self.length,
            seed=self.seed,
            **dict(self.model_settings) | more,
        )
        for line in told(task):
            say(line)
        return task


# How an experiment is run: from a checkout, or from a wheel.
RUN = "python -m " + (
    "experiments." if __package__ == "experiments" else "distill_jax "
)
# The flags that most runs need first: what --help lists.
FIRST = (
    "dataset text_column label_column model examples_per_class out resume overwrite "
    "dry_run publish open preset budgets methods query artifact seed devices"
).split()
RECIPE = (Inner, Start, Meta)


def define(*groups: type, presets: Mapping[str, Mapping[str, Any]] | None = None):
    """Defines a flag for each field of the settings, and `--preset`.

    Args:
        groups: settings; flags are grouped by them in --helpfull.
        presets: settings of papers by name, each by their flags.
    """
    from absl import flags

    for group in groups:
        title = f"{group.__name__}: {(group.__doc__ or '').strip().splitlines()[0]}"
        for field in _fields(group):
            _define(flags, title, field)
    if presets:
        known = "settings of a paper, its flaws included; explicit flags win"
        flags.DEFINE_enum("preset", None, sorted(presets), known)
    _first()


def _define(flags, title: str, field: dataclasses.Field) -> None:
    name, text = flag_of(field), field.metadata["help"]
    if name in flags.FLAGS and flags.FLAGS[name].help == text:
        return  # the seed, which several settings have
    choices, default = field.metadata["choices"], _default(field)
    if choices:
        made: Any = flags.EnumFlag(name, default, text, enum_values=list(choices))
    elif isinstance(default, bool):
        made = flags.BooleanFlag(name, default, text)
    elif isinstance(default, int):
        made = flags.Flag(flags.IntegerParser(), None, name, default, text)
    elif isinstance(default, float):
        made = flags.Flag(flags.FloatParser(), None, name, default, text)
    elif isinstance(default, Mapping):
        made = flags.MultiFlag(flags.ArgumentParser(), None, name, [], text)
    else:
        made = flags.Flag(flags.ArgumentParser(), None, name, default, text)
    flags.DEFINE_flag(made, module_name=title)


def define_run(name: str, *, resumes: bool = False, page: bool = False) -> None:
    """Defines the flags of where a run works and writes.

    Args:
        name: of the file of rows.
        resumes: it has --resume and --overwrite.
        page: it has --open.
    """
    from absl import flags

    flags.DEFINE_string("out", None, "Folder of the run; in runs/ unless given.")
    flags.DEFINE_string(
        "results", None, f"Where rows are appended; runs/{name}.jsonl unless given."
    )
    flags.DEFINE_bool(
        "publish", False, f"Append to results/{name}.jsonl, the rows of the project."
    )
    flags.DEFINE_bool("dry_run", False, "Say what would be done, and stop.")
    if resumes:
        flags.DEFINE_bool("resume", False, "Go on with the run in --out.")
        flags.DEFINE_bool("overwrite", False, "Begin anew where --out has a run.")
    if page:
        flags.DEFINE_bool("open", False, "Show the page of the run in a browser.")
    _first()


def define_devices() -> None:
    """Defines the flags of devices and hosts."""
    from absl import flags

    flags.DEFINE_string(
        "devices", None, "Which share the networks: all, or their number; the first."
    )
    flags.DEFINE_enum(
        "parallel",
        None,
        sorted(parallel.PARALLEL),
        "How a meta-step is spread over them: jit on one, shard_map on several.",
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "On several hosts: HOST:PORT of process 0, or auto, what the cluster says.",
    )
    flags.DEFINE_integer("num_processes", None, "How many processes there are.")
    flags.DEFINE_integer("process_id", None, "Which one this is, from 0.")
    _first()


def _first() -> None:
    from absl import flags

    for name in FIRST:
        if name in flags.FLAGS:  # so that --help lists it
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def _fields(group: type) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(group) if "help" in f.metadata]


def flag_of(field: dataclasses.Field) -> str:
    """What the command line calls a field."""
    return field.metadata["flag"] or field.name


def _default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    assert field.default_factory is not dataclasses.MISSING
    return field.default_factory()


def given(presets: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """What the command line asks for, by flag: a preset, and flags that are present."""
    from absl import flags

    values: dict[str, Any] = {}
    if presets and flags.FLAGS.preset:
        values = dict(presets[flags.FLAGS.preset])
    for name in flags.FLAGS:
        if flags.FLAGS[name].present:
            values[name] = flags.FLAGS[name].value
    return values


def preset() -> str | None:
    """The name given to `--preset`."""
    from absl import flags

    return flags.FLAGS.preset if "preset" in flags.FLAGS else None


def settings(group: type, values: Mapping[str, Any], base: Any = None) -> Any:
    """An object of settings from what flags say.

    Args:
        group: its class.
        values: by flag, from `given`; others are passed over.
        base: what it is where no flag is given; the defaults unless given.

    Raises:
        ValueError: in the words of the flags.
    """
    names = {flag_of(field): field.name for field in _fields(group)}
    found = {names[flag]: value for flag, value in values.items() if flag in names}
    for field in _fields(group):
        if isinstance(found.get(field.name), list | tuple):
            found[field.name] = parsed(found[field.name])
    try:
        return dataclasses.replace(base if base is not None else group(), **found)
    except ValueError as error:
        flag = {python: name for name, python in names.items()}
        pattern = rf"(?<![\w-])({'|'.join(map(re.escape, flag))})(?= must|=)"
        raise ValueError(
            re.sub(pattern, lambda m: f"--{flag[m[1]]}", str(error))
        ) from None


def recipe_of(values: Mapping[str, Any], model: str) -> Recipe:
    """The recipe that flags ask for, from the best known for the network."""
    best = best_recipe(model)
    inner = settings(Inner, values, best.inner)
    start = settings(Start, values, best.start)
    return Recipe(inner, start, settings(Meta, values, best.meta))


def flags_of(recipe: Recipe, model: str) -> list[str]:
    """The flags that ask for a recipe, where it is not the best of the network."""
    words, best = [], best_recipe(model)
    for part in ("inner", "start", "meta"):
        for field in _fields(type(getattr(best, part))):
            value = getattr(getattr(recipe, part), field.name)
            if value == getattr(getattr(best, part), field.name):
                continue
            name = flag_of(field)
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no{name}")
            elif isinstance(value, Mapping):
                words += [f"--{name}={k}={json.dumps(v)}" for k, v in value.items()]
            else:
                words.append(f"--{name}={value}")
    return words


def parsed(items: Sequence[str]) -> dict[str, Any]:
    """`["filters=64", "widths=[2, 3]"]` as a dictionary; values are JSON.

    Raises:
        ValueError: for an item without `=`, or a value that is not JSON.
    """
    found = {}
    for item in items:
        name, equals, value = item.partition("=")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            equals = ""
        if not equals:
            raise ValueError(
                f"a model setting is NAME=VALUE with a JSON value, got {item!r}"
            )
    return found


def numbers(flag: str, text: str) -> list[int]:
    """Whole numbers from 1 with commas, sorted."""
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ValueError(
            f"--{flag} must be whole numbers from 1, with commas, got {text!r}"
        )
    return sorted(set(found))


def words(flag: str, text: str) -> list[str]:
    """Names with commas, each once."""
    found = list(dict.fromkeys(w.strip() for w in text.split(",") if w.strip()))
    if not found:
        raise ValueError(f"--{flag} must be names with commas, got {text!r}")
    return found


def rows_path(name: str) -> Path:
    """Where rows go, by --results and --publish."""
    from absl import flags

    f = flags.FLAGS
    return results.place(name, publish=f.publish, given=f.results)


def join() -> tuple[parallel.Devices, str | None]:
    """Joins the other hosts, if any, and says which devices work and how.

    Returns:
        For `devices=` and `how=` of the library.
    """
    from absl import flags

    f = flags.FLAGS
    parallel.join(f.coordinator, f.num_processes, f.process_id)
    default = "all" if f.coordinator else None
    return parallel.parse_devices(f.devices or default), f.parallel


def compile_cache(folder: str | Path) -> None:
    """Keeps compiled programs in a run's folder, unless the environment says where.

    Seeds and trials share programs, and what goes on later compiles them again.
    """
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path(folder) / "compiled"))


def memory() -> str:
    """The most that this process has held so far."""
    try:
        import resource
    except ImportError:  # not on Windows
        return "unknown"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{peak / (2**30 if sys.platform == 'darwin' else 2**20):.1f} GB at its peak"


@contextmanager
def tensorboard(folder: Path | None) -> Iterator[Callable[[Progress], None]]:
    """Writes what validations report for TensorBoard, if there is a folder."""
    if folder is None:
        yield lambda progress: None
        return
    from tensorboardX import SummaryWriter

    def report(progress: Progress) -> None:
        for name, value in (progress.row or {}).items():
            if name != "step" and value is not None:
                writer.add_scalar(name, value, progress.step)

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        yield report


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table to print."""
    lines = [
        f"{'':16} {'model':12} {'training':9} {'labels':6} {'examples':>9} "
        f"{'accuracy':>15} {'relative':>9}"
    ]
    for row in rows:
        sd, share, size = (
            row[name] for name in ("accuracy_sd", "relative_accuracy", "bytes")
        )
        accuracy = f"{row['accuracy_mean']:.1%}" + (
            "" if sd is None else f" ± {sd:.1%}"
        )
        lines.append(
            f"{row['method']:16} {row['model']:12} {row['training'] or '':9} "
            f"{row['labels'] or '':6} {row['examples']:>9,} {accuracy:>15} "
            f"{'' if share is None else f'{share:.1%}':>9}"
            + ("" if size is None else f"   {size:,} bytes")
        )
    return "\n".join(lines)


@contextmanager
def told_in_a_line(
    argv: Sequence[str],
    name: str,
    *,
    again: Sequence[str] = (),
    not_again: Sequence[str] = (),
    stopped: str = "no rows were added",
) -> Iterator[None]:
    """Ends the process with one line on stderr where its main raises.

    An error of input, files or numbers is `error: ...` and exit status 1, with its
    traceback where DISTILL_JAX_TRACEBACK is set. Ctrl-C is status 130; if a run was
    saved, the command that goes on with it is shown.

    Args:
        argv: what absl passes to main; more than the program is refused.
        name: of the experiment.
        again: flags that the command to go on has more.
        not_again: names of flags that it lacks.
        stopped: what is said of a run that was stopped and not saved.

    Raises:
        absl.app.UsageError: for arguments that are not flags.
        SystemExit: at the end of a run that failed.
    """
    from absl import app, logging

    if argv[1:]:
        raise app.UsageError(f"no arguments but flags, got {argv[1:]}")
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    except Interrupted as stop:
        kept = [
            word
            for word in sys.argv[1:]
            if word.lstrip("-").partition("=")[0] not in not_again and word not in again
        ]
        command = f"{RUN}{name} {shlex.join([*kept, *again])}"
        print(f"\n{stop}\nTo go on: {command}", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        print(f"\nstopped; {stopped}", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ArithmeticError, ModuleNotFoundError) as error:
        if os.environ.get("DISTILL_JAX_TRACEBACK"):
            raise
        print(f"error: {_as_flag(str(error))}", file=sys.stderr)
        sys.exit(1)


def _as_flag(message: str) -> str:
    """A setting of the library, at the start of a message, as its flag."""
    from absl import flags

    name = re.match(r"\w+(?==| must)", message)
    return f"--{message}" if name and name[0] in flags.FLAGS else message
