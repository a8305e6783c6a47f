"""Concurrent packs on a real Slurm: one eviction, one cancellation, and who is named as the one who cancelled."""

import time
from pathlib import Path

import pytest
from cluster import Cluster
from scenes import Scene, submit
from test_endings import assert_stays_away

from hpc.canceller import refine, who_cancelled

pytestmark = pytest.mark.slurm


def _serving_pack(cluster: Cluster, folder: Path) -> Scene:
    """Three runs in one task, two at a time, both of them past their start."""
    scene = submit(cluster, folder, "serve; finish", "serve; finish", "finish", packs=[["run0", "run1", "run2"]], at_a_time=2)
    for run in ("run0", "run1"):
        scene.wait_until_serving(run)
    return scene


def _all_endings(scene: Scene) -> list[list[str]]:
    return [scene.endings(run) for run in ("run0", "run1", "run2")]


def test_an_evicted_pack_stops_together_comes_back_once_and_finishes(cluster: Cluster, user_path: Path) -> None:
    scene = _serving_pack(cluster, user_path)
    cluster.fill(cluster.show_job(scene.task())["NodeList"], seconds=4)
    facts = scene.wait_until_over("COMPLETED", "FAILED")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), scene.say()
    assert _all_endings(scene) == [["preempted", "finished"], ["preempted", "finished"], ["finished"]], scene.say()
    assert [scene.ends(run)[0]["requeue"] for run in ("run0", "run1")] == [True, True]


@pytest.mark.parametrize(("by_root", "ending"), [(False, "cancelled"), (True, "cancelled_by_site")])
def test_a_cancelled_pack_stays_away_and_accounting_names_who_did_it(
    cluster: Cluster, user_path: Path, monkeypatch: pytest.MonkeyPatch, by_root: bool, ending: str
) -> None:
    scene = _serving_pack(cluster, user_path)
    if by_root:
        cluster.command("scancel", scene.task())
    else:
        cluster.run_as_user(["scancel", scene.task()])
    scene.wait_until_over("CANCELLED")
    assert _all_endings(scene) == [["cancelled"], ["cancelled"], []], scene.say()
    monkeypatch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
    uids: dict[str, int] = {}
    limit = time.monotonic() + 20
    while not uids and time.monotonic() < limit:  # slurmdbd hears of it a moment later
        time.sleep(0.5)
        uids = who_cancelled([scene.task()])
    owner = user_path.stat().st_uid
    end = scene.ends("run0")[0]
    assert refine("cancelled", end["reason"], end["job_id"], uids, owner)[0] == ending, f"{uids} {end}"
    assert end["budget"] is None and end["requeue"] is False
    assert_stays_away(scene)
