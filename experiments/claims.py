"""The claims of the comparison paper (Anonymous 2022), each tested from rows.

    python -m experiments.claims
    python -m experiments.claims --transfer=text_cnn,bilstm --runs=runs

What they say is in `distill_jax.report.claims`. For the claim of transfer `--transfer`
trains the networks it names on the sets that experiments.compare left in `--runs`, and
appends rows, see experiments.transfer.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import app, flags

from distill_jax import results as result_rows
from distill_jax.report import claims, verdict
from experiments import transfer
from experiments.running import told_in_a_line


def run(
    results: str,
    *,
    targets: Sequence[str] = (),
    dry_run: bool = False,
    say: Callable[[str], None] = print,
    **settings,
) -> list[claims.Claim]:
    """Trains what transfer needs, if asked to, and answers the claims.

    Args:
        results: the file of the rows.
        targets: networks to transfer to; none: only what rows tell.
        dry_run: stop after the plan of the transfer.
        say: where text goes.
        **settings: of `transfer.run`.

    Returns:
        The claims; none of a dry run.

    Raises:
        FileNotFoundError: if there are no rows.
        ValueError: as `transfer.run`, or where the rows tell of no claim.
    """
    if not Path(results).is_file():
        raise FileNotFoundError(
            f"no {results}: run experiments.compare first, or name a file with "
            "--results"
        )
    if targets:
        transfer.run(
            results=results, targets=targets, dry_run=dry_run, say=say, **settings
        )
    if dry_run:
        return []
    found = claims.answers(verdict.of_best_recipe(result_rows.read(results)))
    if not found:
        raise ValueError(
            f"{results} has no budget with distilled and real examples: run "
            "experiments.compare first"
        )
    say(claims.report(found))
    return found


def main(argv: list[str]) -> None:
    """Runs what the flags say."""
    f = flags.FLAGS
    with told_in_a_line(
        argv,
        "experiments.claims",
        stopped=f"the cells that are done are in {f.results}; the same command goes on",
    ):
        if f.transfer and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
            cache = Path(f.runs) / "transfer-compiled"
            jax.config.update("jax_compilation_cache_dir", str(cache))
        run(
            f.results,
            targets=f.transfer,
            dry_run=f.dry_run,
            runs=f.runs,
            corpora=f.corpora,
            sources=f.sources,
            budgets=f.budgets,
            methods=f.methods,
            full=f.full,
            dataset=f.dataset,
            vectors=f.vectors,
        )


def define_flags() -> None:
    """The flags of this program."""
    flags.DEFINE_string("results", "results/compare.jsonl", "The file of the rows.")
    flags.DEFINE_list("transfer", [], "Networks to train on the distilled sets.")
    flags.DEFINE_string("runs", "runs", "Folder of the folders of experiments.compare.")
    flags.DEFINE_list("corpora", [], "Of these corpora, as rows name them; or of all.")
    flags.DEFINE_list("sources", [], "Distilled with these networks; or with any.")
    flags.DEFINE_list("budgets", [], "At these examples per class; or at all.")
    flags.DEFINE_string(
        "methods", "selections", "Real examples to stand beside them, with commas."
    )
    flags.DEFINE_bool("full", False, "Train these networks on all training data too.")
    flags.DEFINE_string("dataset", None, "Where the corpus is now, if there is one.")
    flags.DEFINE_string("vectors", None, "Where the word vectors are now.")
    flags.DEFINE_bool("dry_run", False, "Say what would be trained, and stop.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
