"""What a comparison will take."""

import jax
import pytest

import distill_jax as dj
from distill_jax import estimate, sources
from distill_jax.compare import plan
from distill_jax.methods import named_methods
from distill_jax.train import Judge
from experiments import cli
from tests.test_compare import TINY, write_corpus

PROTOCOL = dj.Protocol(
    test_inits=4, tuning_inits=2, batch=8, selection_seeds=2, validation_examples=40
)


@pytest.fixture(scope="module", autouse=True)
def single_precision():
    """As users run it."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = write_corpus(tmp_path_factory.mktemp("corpus") / "made_up")
    values = TINY | {"dataset": str(folder)}
    return cli.settings(cli.Corpus, values).task(lambda text: None)


def seconds(task, methods, budgets, lines=()):
    groups = plan(task, methods, budgets, protocol=PROTOCOL, lines=lines)
    found = estimate.seconds(Judge(task, PROTOCOL), groups, methods)
    assert list(found) == [str(group) for group in groups]
    return found


@pytest.fixture
def clock(monkeypatch):
    """A step takes 1 ms, to score 10 ms, a meta-step 1 s and its validations 5 s."""
    monkeypatch.setattr(estimate, "_networks", lambda judge, n: (0.001, 0.01))
    steps = lambda task, recipe, setup: (recipe.meta.steps + 5.0, 1.0)  # noqa: E731
    monkeypatch.setattr(estimate, "timed", steps)


def test_it_adds_up_what_each_group_trains(task, clock, tmp_path, monkeypatch):
    recipe = cli.recipe_of(TINY, "bag")
    names = ["full", "majority", "herding", "random", "query:bald", "distilled"]
    methods, lines = named_methods(
        names,
        recipe=recipe,
        protocol=PROTOCOL,
        folder=tmp_path,
        seeds=2,
        taught=True,
        passes=3,
        pool=60,
    )
    found = seconds(task, methods, [1, 5], lines)
    fit, tuning, test = 0.2, 12, 0.01 * 45 / 40  # 200 steps; 6 step sizes, 2 theta_0
    tuned = tuning * (fit + 2 * 0.01)
    plain = tuned + 2 * 4 * (fit + test)  # two draws, four theta_0
    assert found["herding at 5 per class"] == pytest.approx(plain)
    of_random = tuned + 4 * 2 * (fit + test)  # four draws, two theta_0 each
    assert found["random at 5 per class"] == pytest.approx(2 * of_random)
    asked = 2 * 4 * (fit + 3 * 60 * 0.01 / 40)  # four rounds each
    assert found["query:bald at 5 per class"] == pytest.approx(plain + asked)
    trained = 3 * plain - tuned  # in three ways, one of them is not tuned
    learned = 2 * (recipe.meta.steps + 5)
    assert found["distilled at 5 per class"] == pytest.approx(trained + learned)
    # A minibatch of 3 is 3 / 8 of one of 8; a meta-step on 3 is a fifth of one on 15.
    assert found["herding at 1 per class"] < found["herding at 5 per class"]
    quick, learned_quickly = fit * 3 / 8, 2 * (recipe.meta.steps / 5 + 5)
    less = 24 * (quick + test) + 2 * tuning * (quick + 2 * 0.01) + learned_quickly
    assert found["distilled at 1 per class"] == pytest.approx(less)
    assert found["majority"] == 0 < found["full"]
    monkeypatch.setattr(
        sources.FromRecipe, "is_done", lambda self, task, size, seed: seed == 0
    )
    half = seconds(task, methods, [1, 5], lines)["distilled at 5 per class"]
    assert half == pytest.approx(trained + learned / 2)


def test_nothing_left_takes_nothing(task):
    assert estimate.seconds(Judge(task, PROTOCOL), [], {}) == {}
    assert estimate.told(Judge(task, PROTOCOL), [], {}).startswith("Estimate: 0 s")


def test_it_times_what_runs(task):
    """With a recipe for each method, and for methods of one's own."""

    def own(task, examples_per_class, seed):
        raise AssertionError("not called")

    recipe = cli.recipe_of(TINY, "bag")
    longer = recipe.replace(meta__steps=3000)
    methods = {"own": own, "a": dj.distilled(recipe), "b": dj.distilled(longer)}
    found = list(seconds(task, methods, [2]).values())
    assert 0 < found[0] < found[1] < found[2]
