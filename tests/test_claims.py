"""The paper's claims from made-up rows."""

import numpy as np
import pytest
from scipy import stats

from distill_jax.report import claims, comparison_tables
from tests.test_results import compare_row


def row_of(method, mean, *, dataset="a", budget=1, seeds=3, inits=20, sd=0.01, **more):
    """A row of a comparison whose accuracies have exactly this mean and spread."""
    rng = np.random.default_rng([len(method), budget, seeds])
    noise = rng.normal(0, sd, (seeds, inits))
    accuracies = mean + noise - noise.mean()
    settings = {"network": {}, "train": 90, "seed": 0, "test_inits": inits}
    settings |= more.pop("settings", {})
    return compare_row(
        dataset=dataset,
        model=more.pop("model", "bag"),
        method=method,
        labels=more.pop("labels", "hard"),
        training="standard",
        examples_per_class=budget,
        accuracy_mean=float(accuracies.mean()),
        accuracies=accuracies.tolist(),
        num_seeds=seeds,
        num_inits=inits,
        full_accuracy_mean=None,
        relative_accuracy=None,
        config={
            "settings": settings,
            "validation_accuracy": mean,
            "inits": [list(range(inits))] * seeds,
        },
        **more,
    )


def corpora(gains, **more):
    """Distilled beats random at 0.5 by the gain of each corpus."""
    return [
        row
        for name, gain in gains.items()
        for row in (
            row_of("distilled", 0.5 + gain, dataset=name, **more),
            row_of("random", 0.5, dataset=name, seeds=20, **more),
        )
    ]


def test_generality_is_told_by_the_corpora():
    gains = {"a": 0.2, "b": 0.1, "c": 0.15}
    first, at_one = claims.generality(corpora(gains))
    assert first.question == claims.GENERALITY and first.answer == "yes"
    assert first.corpora == ["a", "b", "c"] and first.network == "bag"
    values = list(gains.values())
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    np.testing.assert_allclose(
        (first.value, first.low, first.high), (0.15, low, high), atol=1e-9
    )
    assert at_one.question.endswith("1 a class") and at_one[2:] == first[2:]


def test_what_differs_over_corpora_is_not_general():
    """Each corpus is certain, and they contradict each other."""
    found = claims.generality(corpora({"a": 0.2, "b": -0.1, "c": 0.15}))[0]
    assert [pair.answer for pair in found.pairs] == ["yes", "no", "yes"]
    assert found.low < 0 < found.high and found.answer == "not told apart"
    lost = claims.generality(corpora({"a": -0.2, "b": -0.1, "c": -0.15}))[0]
    assert lost.answer == "no"


def test_corpora_with_more_budgets_weigh_no_more():
    rows = corpora({"a": 0.3, "b": 0.1}) + corpora({"a": 0.1}, budget=5)
    found = claims.generality(rows)
    assert found[0].value == pytest.approx((0.2 + 0.1) / 2)
    assert [claim.question[-9:] for claim in found[1:]] == ["1 a class", "5 a class"]
    assert found[2].corpora == ["a"] and found[2].answer == "not told apart"


def test_one_corpus_tells_nothing_about_others():
    found = claims.generality(corpora({"a": 0.2}))[0]
    assert found.pairs[0].answer == "yes"
    assert found.answer == "not told apart" and np.isnan(found.low)


def test_networks_are_answered_apart():
    rows = corpora({"a": 0.2, "b": 0.21}) + corpora({"a": -0.2}, model="text_cnn")
    found = {c.network: c for c in claims.generality(rows) if " a class" not in c[0]}
    assert found["bag"].value > 0 > found["text_cnn"].value


def test_sd_ratio_of_known_values():
    a = np.array([[0.0, 2.0], [1.0, 3.0]])  # means 1, 2: B = 0.5; W = 2
    value, low, high = claims.sd_ratio(a, 3 * a)
    assert value == pytest.approx(1 / 3) and low < value < high
    assert claims.sd_ratio(a, a)[0] == 1
    narrow = claims.sd_ratio(a, 3 * a, confidence=0.5)
    assert low < narrow[1] < narrow[2] < high
    # B + W / 2 = 1.5, over that of a without spread between seeds: W / 2 = 1.
    b = np.array([[0.0, 2.0], [0.0, 2.0]])
    assert claims.sd_ratio(a, b)[0] == pytest.approx(np.sqrt(1.5))


def test_the_interval_of_the_ratio_covers_it():
    """With three seeds that differ much: a bootstrap holds the truth in two of three"""
    rng, held = np.random.default_rng(0), 0
    for number in range(300):
        a = rng.normal(0, 1, (3, 1)) + rng.normal(0, 0.3, (3, 20))
        b = rng.normal(0, 2, (20, 1)) + rng.normal(0, 0.3, (20, 5))
        _, low, high = claims.sd_ratio(a, b, num_draws=1000, seed=number)
        held += low <= np.sqrt((1 + 0.09) / (4 + 0.09)) <= high
    assert 0.91 <= held / 300 <= 0.99


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([[0.1, 0.2]], [[0.1, 0.2]] * 2, r"a must be \[seeds, inits\]"),
        ([[0.1, 0.2]] * 2, [[0.1], [0.2]], r"b must be \[seeds, inits\]"),
        ([[0.1, 0.2]] * 2, [[0.1, 0.1]] * 2, "b does not vary"),
    ],
)
def test_sd_ratio_refuses_what_has_no_ratio(a, b, message):
    with pytest.raises(ValueError, match=message):
        claims.sd_ratio(a, b)


def test_stability_is_told_by_ratios():
    rows = []
    for name, sd in (("a", 0.01), ("b", 0.012), ("c", 0.008)):
        rows += [
            row_of("distilled", 0.7, dataset=name, sd=sd),
            row_of("random", 0.5, dataset=name, seeds=20, inits=5, sd=0.05),
            # Neither of these has what it takes.
            row_of("distilled", 0.7, dataset=name, budget=2, seeds=1),
            row_of("random", 0.5, dataset=name, budget=2, seeds=20),
            row_of("random", 0.5, dataset=name, seeds=20, labels="soft", sd=1e-4),
        ]
    (found,) = claims.stability(rows)
    assert len(found.pairs) == 3 and found.answer == "yes" and found.is_ratio
    geometric = np.exp(np.mean([np.log(pair.value) for pair in found.pairs]))
    assert found.value == pytest.approx(geometric) and 0.1 < found.value < 0.3
    assert found.low < found.value < found.high < 1
    assert all(pair.answer == "yes" for pair in found.pairs)
    alike = [row_of("distilled", 0.7, sd=0.05), row_of("random", 0.5, sd=0.05)]
    (same,) = claims.stability(alike)
    assert same.pairs[0].low < 1 < same.pairs[0].high
    assert same.pairs[0].answer == same.answer == "not told apart"
    swapped = [
        row | {"method": {"random": "distilled", "distilled": "random"}[row["method"]]}
        for row in rows
        if row["labels"] == "hard" and row["examples_per_class"] == 1
    ]
    (other,) = claims.stability(swapped)
    assert other.answer == "no" and other.value == pytest.approx(1 / found.value)


def moved(gain, dataset="a", **more):
    """Distilled with bag, and what stands beside it on text_cnn."""
    source = {"source": {"model": "bag"}}
    common = {"dataset": dataset, "model": "text_cnn", "preset": "transfer"}
    return [
        row_of("distilled", 0.6 + gain, settings=source, **common | more),
        row_of("random", 0.5, seeds=20, **common),
        row_of("herding", 0.6, seeds=5, **common),
    ]


def test_transfer_is_beside_the_same_network():
    rows = moved(0.05) + moved(0.07, "b")
    rows += corpora({"a": 0.4, "b": 0.4})  # of the network that has distilled
    # Another protocol: its 0.9 may not count.
    rows += [
        row_of("herding", 0.9, dataset=n, model="text_cnn", settings={"test_inits": 5})
        for n in "ab"
    ]
    random, best = claims.transfer(rows)
    assert random.question == claims.VS_RANDOM.format("bag")
    assert best.question == claims.VS_BEST.format("bag")
    assert random.network == best.network == "text_cnn"
    assert random.value == pytest.approx(0.16) and best.value == pytest.approx(0.06)
    assert all("herding" in pair.said for pair in best.pairs)
    assert [pair.answer for pair in best.pairs] == ["yes", "yes"]
    lost = claims.transfer(moved(-0.05))
    assert [claim.pairs[0].answer for claim in lost] == ["yes", "no"]


def test_rows_of_transfer_are_seen_by_no_other_table():
    rows, more = corpora({"a": 0.2, "b": 0.1}), moved(0.05)
    table = comparison_tables.compare
    assert table({"compare": rows}) == table({"compare": rows + more})
    assert claims.generality(rows) == claims.generality(rows + more)
    assert claims.stability(rows) == claims.stability(rows + more)


def test_the_table_has_a_line_for_each_answer():
    rows = corpora({"a": 0.2, "b": 0.21}) + moved(0.05)
    text = claims.claims({"compare": rows})
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert len(lines) == len(claims.answers(rows)) == 5
    assert "+20.5 [+14.1, +26.9] | **yes** |" in lines[0]
    assert "2 / 0 / 0" in lines[0] and "1 / 0 / 0" in lines[-1]
    assert lines[-1].endswith("+5.0 | **not told apart** |")
    assert "No rows" in claims.claims({"compare": []})
