"""Trains one network on what another has distilled, beside real sentences.

The sets that a comparison measured are trained on as every set there: the same grid on
validation, the same theta_0, test read once. Only standard training: order and step
sizes were learned for the other network. Rows have the preset `transfer`, so tables of
one network do not see them. Rows of real sentences that are there already, whatever
their preset, are not made again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distill_jax import estimate, parallel
from distill_jax.compare import Group, compare, plan, rows_of
from distill_jax.measured import measured, task_of
from distill_jax.methods import named_methods
from distill_jax.names import digest
from distill_jax.report.claims import TRANSFER
from distill_jax.results import Row
from distill_jax.sources import Method
from distill_jax.task import Task, model_maker, with_model
from distill_jax.train import Judge, Protocol


class Move(NamedTuple):
    """What is to be done to train one network on the sets of another.

    Attributes:
        source: the network that has distilled.
        task: the corpus and the other network.
        protocol: of the comparison.
        todo: groups of rows that are not there, each with the methods at its budget.
        count: groups in all.
    """

    source: str
    task: Task
    protocol: Protocol
    todo: list[tuple[Group, dict[str, Method]]]
    count: int

    def __str__(self) -> str:
        name, target = self.task.dataset.name, self.task.model_name
        text = f"{name}, {self.source} to {target}: {len(self.todo)} of {self.count}"
        if not self.todo:
            return f"{text} to do."
        judge, methods = Judge(self.task, self.protocol), self.todo[-1][1]
        told = estimate.told(judge, [group for group, _ in self.todo], methods)
        return f"{text} to do. {told}"


def moves(
    known: Sequence[Row],
    targets: Sequence[str],
    runs: str | Path,
    *,
    names: Sequence[str] = ("selections",),
    lines: Sequence[str] = (),
    dataset: str | None = None,
    vectors: str | None = None,
    say: Callable[[str], None] = lambda text: None,
    **which: Any,
) -> list[Move]:
    """What is to be trained, for each corpus, network that has distilled, and target.

    Args:
        known: rows that are there.
        targets: networks; none is trained on its own sets, whose rows are there.
        runs: the folder of the folders that comparisons left.
        names: of real sentences, as for `named_methods`.
        lines: as for `compare`.
        dataset, vectors: where they are now, if not where the artefacts say.
        say: where text goes.
        which: `corpora`, `models` and `budgets`, as for `measured`.

    Raises:
        ValueError: for an unknown network or method, or if there is nothing to do, and
            as `measured` and `measured.task_of`.
        FileNotFoundError: as `measured`.
    """
    for target in targets:
        model_maker(target, {})
    named_methods(names)
    groups = measured(known, runs, say=say, **which)
    corpora = {next(iter(group.values())).row["dataset"] for group in groups}
    if dataset is not None and len(corpora) > 1:
        raise ValueError("--dataset is the place of one corpus: name it by --corpora")
    alike = [row | {"preset": TRANSFER} for row in known]
    found, seen = [], set()
    for sets in groups:
        first = next(iter(sets.values()))
        source, protocol = first.row["model"], first.protocol
        others = [target for target in targets if target != source]
        if not others:
            continue  # its rows are those of the comparison
        own = task_of(sets, dataset=dataset, vectors=vectors, say=say)
        for target in others:
            task, planned = with_model(own, target), []
            for budget, one in sets.items():
                methods, _ = named_methods(names, protocol=protocol)
                methods["distilled"] = one.method("soft", "hard")
                facts = {"protocol": protocol, "lines": lines}
                for group in plan(task, methods, [budget], **facts):
                    key = digest([task.sha256, *group])
                    if key not in seen:  # two may have distilled, at several budgets
                        planned.append((group, methods))
                    seen.add(key)
            facts = {"experiment": "compare", "model": target, "preset": TRANSFER}
            todo = [
                (group, methods)
                for group, methods in planned
                if not rows_of(
                    alike if group.examples_per_class else known, task, group, facts
                )
            ]
            found.append(Move(source, task, protocol, todo, len(planned)))
    if not found:
        raise ValueError(
            f"nothing to transfer: {', '.join(targets)} is what has distilled"
        )
    return found


def transfer(
    move: Move,
    rows: str | Path,
    *,
    lines: Sequence[str] = (),
    devices: parallel.Devices = None,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Trains what a move has to do, and appends the rows, each when it is done.

    Args:
        move: from `moves`.
        rows: their file.
        lines, devices, say: as for `compare`.
    """
    for group, methods in move.todo:
        budget: Any = group.examples_per_class
        compare(
            move.task,
            {group.name: methods[group.name]} if budget else {},
            [budget] if budget else [],
            protocol=move.protocol,
            lines=lines,
            rows=rows,
            preset=TRANSFER,
            devices=devices,
            say=say,
        )
