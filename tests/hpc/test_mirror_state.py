"""What status says of W&B, from the state files of mirrors that live, ended or were killed."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from fake_sweep import FakeSweep

from hpc import mirror_state, status_look
from hpc.mirror_cursor import wandb_folder
from hpc.mirror_state import BEAT_S, STALE_S, MirrorState, StateFile
from hpc.status_json import to_json
from hpc.status_view import render
from seresnet import claims

ADDRESS = "https://wandb.ai/me/demo/runs/x"
HERE = claims.this_process({})


def view_of(state: MirrorState, epoch: int = 6, epoch_s: float = 5.0) -> tuple[str, int]:
    found = mirror_state.view(state, epoch, epoch_s, HERE, time.time())
    return found.word, found.behind


def live(mode: str = "online", epoch: int = 6, **more: object) -> MirrorState:
    return MirrorState(mode=mode, epoch=epoch, address=ADDRESS, **more).signed(HERE)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (live(), ("online", 0)),
        (live(epoch=4), ("online", 2)),  # a checkpoint will cover them within the minute
        (live(epoch=4, why="the server has not answered since 12:03"), ("behind", 2)),
        (live(epoch=4, is_over=True), ("behind", 2)),
        (live("offline", why="no key"), ("offline", 0)),
        (live("off", 3, is_over=True, why="deleted"), ("off", 3)),
    ],
)
def test_a_run_is_online_offline_behind_or_off(state: MirrorState, expected: tuple[str, int]) -> None:
    assert view_of(state) == expected
    assert view_of(live(epoch=4), epoch_s=100.0) == ("behind", 2), "three minutes late is late"


def test_a_killed_mirror_looks_dead_at_once_here_and_after_a_while_elsewhere() -> None:
    gone = replace(live(), pid=2**22 - 1, process_started="1")
    assert view_of(gone) == ("off", 0)
    elsewhere = replace(gone, host="node7", boot_id="other")
    assert view_of(elsewhere) == ("online", 0)
    assert view_of(replace(elsewhere, time=time.time() - STALE_S - 1)) == ("off", 0)


def test_a_mirror_writes_seldom_and_shows_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, now = FakeSweep(tmp_path, seeds=1), [1000.0]
    folder, written = sweep.of("se", 0), []
    monkeypatch.setattr(mirror_state, "write_json_durably", lambda path, value: written.append(value["epoch"]))
    monkeypatch.setattr(mirror_state.time, "monotonic", lambda: now[0])
    file = StateFile(folder, HERE)
    for epoch in range(1, 901):
        file.note(mode="online", epoch=epoch)
        now[0] += 5.0
    assert len(written) <= 1 + 4500 / 20, f"{len(written)} writes in 75 minutes"
    before = len(written)
    now[0] += BEAT_S
    file.note(mode="online", epoch=900)
    assert len(written) == before + 1


def test_status_shows_the_sweep_each_run_and_where_to_find_it(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    for arm, state in (("se", live(is_over=True)), ("baseline", live("offline", why="no key", is_over=True, epoch=4))):
        wandb_folder(sweep.of(arm, 0)).mkdir()
        state.write(sweep.of(arm, 0))
    look = status_look.take(sweep.folder)
    text = render(look, 200, is_ascii=True).plain
    assert "W&B: 1 online, 1 behind (baseline-seed0 by 2 epochs: no key); https://wandb.ai/me/demo" in text
    assert f"online {ADDRESS}" in text and "behind 2" in text and f"python -m hpc.mirror {sweep.folder.path}" in text
    assert "W&B: 1 online" in render(look, 60, is_ascii=True).plain
    runs = {run["slug"]: run["wandb"] for run in to_json(look)["runs"]}
    assert runs["se-seed0"] == {"state": "online", "behind": 0, "why": None, "address": ADDRESS}


def test_a_sweep_that_never_published_says_nothing_of_it(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path, seeds=1).finish_all()
    wandb_folder(sweep.of("se", 0)).mkdir()
    (wandb_folder(sweep.of("se", 0)) / "state.json").write_text('{"schema": 1, "mode": 7')
    look = status_look.take(sweep.folder)
    assert "W&B" not in render(look, 200, is_ascii=True).plain and to_json(look)["runs"][0]["wandb"] is None
