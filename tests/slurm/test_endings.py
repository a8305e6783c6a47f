"""How attempts end on a real Slurm: what was recorded, whether the job came back, and whether that was right.

The table of endings (endings_rows.py) is played and printed; beside it stand the scenes that are more than a row.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from endings_rows import WAVES
from endings_table import Row, Table, Wave, talk_to
from scenes import Scene, assert_stays_away, submit, wait_for

pytestmark = pytest.mark.slurm

ROWS = [(wave, row) for wave in WAVES for row in wave.rows]


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Table:
    """Printed at the end of the session."""
    table = Table()
    request.config.pluginmanager.register(table)
    return table


@pytest.fixture(scope="session")
def row_cluster(checked_cluster: Cluster) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        talk_to(checked_cluster, monkeypatch)
        yield checked_cluster


def _chosen(request: pytest.FixtureRequest) -> list[Row]:
    """The rows of this session that are not skipped: a wave plays them together."""
    items = [item for item in request.session.items if hasattr(item, "callspec") and item.get_closest_marker("skip") is None]
    return [item.callspec.params["row"] for item in items if "row" in item.callspec.params]


@pytest.mark.parametrize(
    ("wave", "row"),
    [pytest.param(wave, row, id=f"{row.what} ({row.job})", marks=[pytest.mark.slow] if wave.is_slow else []) for wave, row in ROWS],
)
def test_the_table(request: pytest.FixtureRequest, row_cluster: Cluster, table: Table, wave: Wave, row: Row) -> None:
    seen = wave.seen(row, row_cluster, _chosen(request))
    assert seen in row.expect
    table.add(row, seen)


def test_the_table_is_long_and_whole(request: pytest.FixtureRequest, table: Table) -> None:
    asked = _chosen(request)
    lack = len(asked) - len(table.lines)
    assert lack == 0 and len(ROWS) >= 24, f"{lack} of {len(asked)} rows are missing"
    assert max(map(len, table.text().splitlines())) <= 120


def _node(scene: Scene, index: int = 0) -> str:
    return scene.cluster.show_job(scene.task(index))["NodeList"]


def test_an_array_finishes(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "finish", "finish", "finish", packs=[["run0", "run1"], ["run2"]])
    for index in (0, 1):
        assert scene.wait_until_over("COMPLETED", "FAILED", index=index)["JobState"] == "COMPLETED", scene.say()
    assert [scene.endings(run) for run in ("run0", "run1", "run2")] == [["finished"]] * 3
    assert not list(scene.sweep.glob("logs/*_result.pkl"))


def test_a_job_cancelled_while_it_starts_never_comes_back(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "serve; finish")
    cluster.wait_for_state(scene.task(), "RUNNING")
    cluster.run_as_user(["scancel", scene.task()])
    scene.wait_until_over("CANCELLED")
    assert_stays_away(scene)


def test_a_job_evicted_while_it_starts_is_requeued_and_trains_again(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "serve; serve; finish")
    cluster.wait_for_state(scene.task(), "RUNNING")
    cluster.fill(_node(scene), seconds=2)
    wait_for(lambda: "1" if scene.cluster.show_job(scene.task()).get("Restarts") == "1" else "", "requeued", scene.say)
    before = scene.attempts()  # 0 or 1; a requeued job is held for some seconds, so the next attempt has not begun
    wait_for(lambda: "1" if scene.attempts() > before else "", "claimed again", scene.say)
    scene.wait_until_serving(generation=before + 1)
    facts = scene.cluster.show_job(scene.task())
    assert (facts["JobState"], facts["Restarts"]) == ("RUNNING", "1"), scene.say()
    cluster.run_as_user(["scancel", scene.task()])
    scene.wait_until_over("CANCELLED")
    assert scene.endings()[-1] == "cancelled", scene.say()


def test_a_rank_killed_with_9_is_tried_again_in_the_same_task(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "serve; finish", ranks=2)
    os.kill(scene.wait_until_serving(rank=1), signal.SIGKILL)
    facts = scene.wait_until_over("COMPLETED", "FAILED")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "0"), scene.say()
    assert scene.endings() == ["killed", "finished"]


def test_a_lost_supervisor_is_inferred_and_its_ranks_are_gone(cluster: Cluster, user_path: Path) -> None:
    scene = submit(cluster, user_path, "serve; finish")
    rank = scene.wait_until_serving()
    cluster.run_as_user(["scontrol", "requeue", scene.task()])  # by hand: the step is killed within a second, nothing else is said
    facts = scene.wait_until_over("COMPLETED", "FAILED")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), scene.say()
    assert len(scene.endings()) == 2 and scene.endings()[1] == "finished"
    assert not Path(f"/proc/{rank}").exists()
