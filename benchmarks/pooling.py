"""Which pooling of `text_cnn` is faster on this backend: `winners` or `dense`.

    python -m benchmarks.pooling

`winners` does a small part of the arithmetic by gathers, `dense` all of it in matrix
products; which one wins is a matter of the device. Two minutes on one core.
"""

from collections.abc import Sequence

from benchmarks import common, meta_step
from benchmarks.common import Row

POOLING = {"distill_jax": "winners", "distill_jax_dense": "dense"}


def verdict(rows: Sequence[Row]) -> str:
    """One line for each configuration, and one for the backend.

    Args:
        rows: of `distill_jax` and `distill_jax_dense`, the same configurations.
    """
    by_config: dict[str, dict[str, float]] = {}
    for row in rows:
        pooling = POOLING[row["implementation"]]
        by_config.setdefault(row["config"], {})[pooling] = row["seconds_median"]
    lines, wins = [], []
    for config, seconds in by_config.items():
        best = min(seconds, key=lambda pooling: seconds[pooling])
        times = max(seconds.values()) / seconds[best]
        wins.append(best)
        lines.append(f"{config}: {best} is {times:.2f} times as fast")
    either = wins[0] if len(set(wins)) == 1 else "either, by the configuration"
    lines.append(f"faster on {rows[0]['backend']} ({rows[0]['device']}): {either}")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    from absl import flags

    f = flags.FLAGS
    known = {k: v for k, v in meta_step.CONFIGS.items() if k.startswith("text_cnn")}
    with common.told_in_a_line(argv):
        names = common.chosen(f.configs, known, "configuration")
        threads = common.pin(f.threads)
        from benchmarks.implementations import Config

        rows = meta_step.run(
            {name: Config(**known[name]) for name in names},
            list(POOLING),
            repeats=f.repeats,
            threads=threads,
        )
        print(verdict(rows))


def define_flags() -> None:
    """The flags of this benchmark."""
    from absl import flags

    flags.DEFINE_list(
        "configs",
        ["text_cnn_sst5", "text_cnn_imdb", "text_cnn_t10"],
        "Configurations of benchmarks.meta_step with a text_cnn.",
    )
    flags.DEFINE_integer("repeats", 5, "Calls that are timed.", lower_bound=1)
    flags.DEFINE_integer("threads", 1, "Cores to use.", lower_bound=1)


if __name__ == "__main__":
    from absl import app

    define_flags()
    app.run(main)
