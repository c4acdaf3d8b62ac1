"""What `benchmarks.acquisition` measures: problems, and ways to acquire from them.

A problem is a configuration and arrays in NumPy, so that it can go to a process that
has JAX alone, or PyTorch alone, and that process's memory be measured. Neither is
imported before it is needed.

Axes: N items, L tokens, D embedding, H features, C classes, F sampled networks.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import SCALE, VOCABULARY, WIDTH

CHUNK = 256  # sentences that PyTorch scores at once; see `torch_reference`

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of one measurement; None where a task has no such size.

    Attributes:
        task: `mc_dropout`, `k_center` or `badge`.
        items: N.
        classes: C.
        passes: F.
        tokens: L of the longest sentence.
        features: H.
        picks: how many items are asked for.
        labelled: items that have a label already.
        dropout: rate of the network, in [0, 1).
        settings: of the network, `distill_jax.models.text_cnn`.
    """

    task: str
    items: int
    classes: int | None = None
    passes: int | None = None
    tokens: int | None = None
    features: int | None = None
    picks: int | None = None
    labelled: int = 0
    dropout: float = 0.5
    settings: tuple[tuple[str, Any], ...] = ()


@dataclasses.dataclass(frozen=True)
class Problem:
    """One draw: `tokens [N, L]`, `vectors [V, D]` and the weights by their path in the
    tree; or `features [N, H]` and, for BADGE, `log_probs [1, N, C]`."""

    config: Config
    arrays: Arrays


@dataclasses.dataclass(frozen=True)
class Ready:
    """One way, compiled.

    Attributes:
        run: `() -> result` in NumPy: log-probabilities `[F, N, C]`, or picks.
        compile_seconds: None where nothing is compiled.
    """

    run: Callable[[], np.ndarray]
    compile_seconds: float | None = None


def draw(config: Config, tokens: np.ndarray | None = None, seed: int = 0) -> Problem:
    """Random features or weights, and random sentences unless some are given.

    Args:
        config: `items` and `tokens` must be those of the sentences.
        tokens: word ids `[N, L]`, 0 is padding.
        seed: of the random numbers.

    Raises:
        ValueError: on an unknown task.
    """
    r = np.random.default_rng(seed)
    arrays: Arrays = {}
    if config.task == "mc_dropout":
        if tokens is None:
            shape = (config.items, config.tokens or 1)
            tokens = r.integers(1, VOCABULARY, shape, np.int32)
        num_words = max(VOCABULARY, int(tokens.max()) + 1)
        vectors = r.normal(scale=SCALE, size=(num_words, WIDTH)).astype(np.float32)
        vectors[0] = 0
        arrays = {"tokens": tokens, "vectors": vectors} | _weights(config, vectors)
    elif config.task in ("k_center", "badge"):
        shape = (config.items, config.features or 1)
        arrays["features"] = r.normal(size=shape).astype(np.float32)
        if config.task == "badge":
            logits = r.normal(size=(1, config.items, config.classes or 1))
            log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            arrays["log_probs"] = log_probs.astype(np.float32)
    else:
        raise ValueError(
            f"unknown task {config.task!r}, known: mc_dropout, k_center, badge"
        )
    return Problem(config, arrays)


def save(problem: Problem, path: str | Path) -> None:
    """Writes the arrays as .npz."""
    arrays: dict[str, Any] = dict(problem.arrays)
    np.savez(path, **arrays)


def load(config: Config, path: str | Path) -> Problem:
    """What `save` wrote for this configuration."""
    with np.load(path, allow_pickle=False) as arrays:
        return Problem(config, dict(arrays))


def distill_jax(problem: Problem) -> Ready:
    """This library."""
    if problem.config.task == "mc_dropout":
        return _mc_dropout(problem)
    import jax

    from distill_jax.queries import QUERIES, Context

    c = problem.config
    context = Context(
        np.arange(c.items) < c.labelled,
        problem.arrays.get("log_probs"),
        problem.arrays["features"],
    )
    query, key = QUERIES[c.task], jax.random.key(0)
    return Ready(lambda: query.pick(context, c.picks or 1, key).indices)


def distill_jax_dense(problem: Problem) -> Ready:
    """The same with `pooling="dense"`: the max over time alone is computed, and not
    the scores of the winners once more, which only a derivative needs.

    Raises:
        ValueError: for a task without a network.
    """
    if problem.config.task != "mc_dropout":
        raise ValueError(f"{problem.config.task} has no pooling")
    settings = (*problem.config.settings, ("pooling", "dense"))
    config = dataclasses.replace(problem.config, settings=settings)
    return distill_jax(Problem(config, problem.arrays))


def torch_reference(problem: Problem) -> Ready:
    """A PyTorch loop: F forward passes in training mode, in chunks, without gradients.

    On a CPU, chunks of 256 are within 4 % of the fastest of 16 to 1,024.
    """
    return _torch(problem, trunk_once=False)


def torch_trunk_once(problem: Problem) -> Ready:
    """The same, with what comes before the dropout computed once, by hand."""
    return _torch(problem, trunk_once=True)


def _torch(problem: Problem, *, trunk_once: bool) -> Ready:
    import torch

    c, network = problem.config, _torch_network(problem)
    tokens = torch.from_numpy(problem.arrays["tokens"])
    chunks = [slice(i, i + CHUNK) for i in range(0, len(tokens), CHUNK)]
    shape = c.passes or 1, len(tokens), c.classes or 1

    def run():
        out = torch.empty(shape, dtype=network.dtype)
        with torch.inference_mode():
            if trunk_once:
                for rows in chunks:
                    h = network.trunk(tokens[rows])
                    for one in out:
                        one[rows] = network.head(h)
            else:
                for one in out:
                    for rows in chunks:
                        one[rows] = network.head(network.trunk(tokens[rows]))
        return out.numpy()

    return Ready(run)


IMPLEMENTATIONS: dict[str, Callable[[Problem], Ready]] = {
    "distill_jax": distill_jax,
    "distill_jax_dense": distill_jax_dense,
    "torch_trunk_once": torch_trunk_once,
    "torch_reference": torch_reference,
}


def _model(config: Config, vectors: Any) -> Any:
    from distill_jax.models import MODELS

    settings = dict(config.settings) | {"dropout": config.dropout}
    return MODELS["kim_cnn"](vectors, config.classes, **settings)


def _weights(config: Config, vectors: np.ndarray) -> Arrays:
    import jax

    theta = jax.jit(_model(config, vectors).init)(jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(theta)
    return {
        "/".join(["theta", *(step.key for step in path)]): np.array(leaf)
        for path, leaf in leaves
    }


def _tree(arrays: Arrays) -> dict[str, Any]:
    """The weights as the nested dicts they were."""
    tree: dict[str, Any] = {}
    for name, leaf in arrays.items():
        first, *path = name.split("/")
        if first == "theta":
            branch = tree
            for step in path[:-1]:
                branch = branch.setdefault(step, {})
            branch[path[-1]] = leaf
    return tree


def _mc_dropout(problem: Problem) -> Ready:
    import jax

    from distill_jax.active import mc_log_probs
    from distill_jax.types import Batch

    c, vectors = problem.config, problem.arrays["vectors"]
    theta, tokens = _tree(problem.arrays), problem.arrays["tokens"][None]
    mask: Any = (tokens != 0).astype(vectors.dtype)
    nothing: Any = np.zeros((*tokens.shape[:2], 1), vectors.dtype)
    words: Any = tokens
    pool = Batch(words, mask, nothing)

    @jax.jit
    def scored(vectors, theta, pool, key):
        # An argument: a constant of the program is copied by each of its compilers.
        score = mc_log_probs(_model(c, vectors))
        return score(theta, pool, jax.random.split(key, c.passes or 1))

    args = jax.device_put((vectors, theta, pool, jax.random.key(0)))
    lowered = scored.lower(*args)
    start = time.perf_counter()
    compiled = lowered.compile()
    compile_seconds = time.perf_counter() - start
    return Ready(lambda: np.asarray(compiled(*args)), compile_seconds)


def _torch_network(problem: Problem) -> Any:
    import torch
    import torch.nn.functional as F
    from torch import nn

    table = torch.from_numpy(problem.arrays["vectors"])
    theta = _tree(problem.arrays)
    widths = sorted(map(int, theta["conv"]))

    def dense(leaves):
        kernel, bias = map(torch.from_numpy, (leaves["kernel"].T, leaves["bias"]))
        layer = nn.Linear(kernel.shape[1], kernel.shape[0], dtype=kernel.dtype)
        layer.load_state_dict({"weight": kernel, "bias": bias})
        return layer

    def convolution(leaves):
        kernel, bias = map(torch.from_numpy, (leaves["kernel"], leaves["bias"]))
        D = table.shape[1]
        kernel = kernel.view(len(kernel), -1, D).transpose(1, 2)
        layer = nn.Conv1d(D, len(kernel), kernel.shape[2], dtype=kernel.dtype)
        layer.load_state_dict({"weight": kernel, "bias": bias})
        return layer

    class TextCNN(nn.Module):
        """`distill_jax.models.text_cnn`; row 0 of the table must be zeros."""

        dtype = table.dtype

        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding.from_pretrained(table, padding_idx=0)
            self.convolutions = nn.ModuleList(
                convolution(theta["conv"][str(width)]) for width in widths
            )
            self.dropout = nn.Dropout(problem.config.dropout)
            self.dense = nn.Sequential(
                *(dense(theta[name]) for name in ("hidden", "out") if name in theta)
            )

        def trunk(self, tokens):
            x = self.embedding(tokens).transpose(1, 2)
            outside = tokens == 0
            outside[:, 0] = False
            pooled = []
            for width, one in zip(widths, self.convolutions, strict=True):
                scores = one(F.pad(x, (0, width - 1)))
                pooled.append(
                    scores.masked_fill_(outside[:, None], -torch.inf).amax(-1)
                )
            return torch.cat(pooled, -1).relu()

        def head(self, h):
            return self.dense(self.dropout(h)).log_softmax(-1)

    return TextCNN().train()
