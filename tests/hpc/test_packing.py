"""Packs: which runs share a task."""

import random

from hpc.packing import plan
from hpc.sweep import PlannedRun
from hpc.sweep_spec import PackRequest
from seresnet.config import RunConfig, TrainConfig


def run(name: str, ranks: int = 1) -> PlannedRun:
    return PlannedRun(config=RunConfig(train=TrainConfig(ranks=ranks)), run_id=name, slug=name, arms=("a",))


def ids(runs: list[PlannedRun], finished: set[str], runs_per_task: int) -> list[tuple[str, ...]]:
    return [pack.run_ids for pack in plan(runs, finished, PackRequest(runs_per_task=runs_per_task))]


def test_runs_fill_tasks_in_order() -> None:
    assert ids([run(name) for name in "abcde"], set(), 2) == [("a", "b"), ("c", "d"), ("e",)]


def test_finished_runs_are_in_no_pack() -> None:
    assert ids([run(name) for name in "abcde"], {"b", "c"}, 2) == [("a", "d"), ("e",)]


def test_finished_sweep_plans_nothing() -> None:
    assert plan([run("a"), run("b")], {"a", "b"}, PackRequest(runs_per_task=3)) == ()


def test_runs_with_other_ranks_share_no_pack() -> None:
    runs = [run("a"), run("b", 2), run("c"), run("d", 2), run("e")]
    packs = plan(runs, set(), PackRequest(runs_per_task=2))
    assert [(pack.run_ids, pack.shape.ranks) for pack in packs] == [(("a", "c"), 1), (("e",), 1), (("b", "d"), 2)]


def test_every_unfinished_run_is_in_exactly_one_pack() -> None:
    draw = random.Random(0)
    for _ in range(50):
        runs = [run(str(index), draw.choice([1, 2, 4])) for index in range(draw.randrange(30))]
        finished, size = {one.run_id for one in runs if draw.random() < 0.3}, draw.randrange(1, 5)
        packs = plan(runs, finished, PackRequest(runs_per_task=size))
        packed = sorted(name for pack in packs for name in pack.run_ids)
        assert packed == sorted(one.run_id for one in runs if one.run_id not in finished)
        assert all(len(pack.runs) <= size and {one.config.train.ranks for one in pack.runs} == {pack.shape.ranks} for pack in packs)
