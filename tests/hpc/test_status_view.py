"""What status shows: every state at every width, reasons in words, hours, when all is done, who cancelled, idle GPUs, damaged files."""

import json
import os
import random
import re
import time
from pathlib import Path

import pytest
from fake_sweep import FakeSweep, in_every_state

from hpc import hold, slurm, status, status_look
from hpc.forecast import TaskLeft, last_end
from hpc.paths import Submission, Submissions
from hpc.progress_view import progress_of
from hpc.spent import spent
from hpc.states import STATES, Queue, RunState, run_states
from hpc.status_view import render
from seresnet.run_folder import RunHead


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSweep:
    """Twelve runs in eleven states, two of them failed; sacct is not there."""
    monkeypatch.chdir(tmp_path)
    sweep, jobs = in_every_state(tmp_path / "runs")
    monkeypatch.setattr(slurm, "listed_jobs", lambda: jobs)
    return sweep


def screen(sweep: FakeSweep, width: int, height: int | None = None) -> list[str]:
    look = status_look.take(sweep.folder)
    return render(look, width, is_ascii=False, height=height).plain.splitlines()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_every_run_is_one_row_with_its_state_at_every_width(sweep: FakeSweep, width: int) -> None:
    lines = screen(sweep, width)
    rows = [line for line in lines if re.match(r"\S+-seed\d ", line)]
    assert len(rows) == 12
    assert {state for state in STATES if any(f" {state}" in row for row in rows)} == set(STATES)
    assert any("failed: diverged" in row for row in rows)
    too_wide = [line for line in lines if len(line) > width and not line.startswith("    ")]
    assert too_wide == [], "only paths and commands may be wider"


def test_more_columns_where_there_is_room(sweep: FakeSweep) -> None:
    heads = {width: screen(sweep, width)[0].split() for width in (60, 80, 120, 200)}
    assert heads[80] == ["run", "state", "epoch", "test", "%", "left", "CPU-h", "tries"]
    assert set(heads[60]) < set(heads[80]) < set(heads[120]) < set(heads[200])
    assert heads[200][-2:] == ["node", "note"]


def test_a_queued_run_says_why_and_since_when_it_is_expected_to_start(sweep: FakeSweep) -> None:
    narrow, wide = "\n".join(screen(sweep, 80)), "\n".join(screen(sweep, 200))
    plain = "waits: you use as many GPUs as this QOS allows (QOSMaxGRESPerUser); expected to start"
    assert plain in " ".join(narrow.split()) and plain in wide


def test_a_hold_is_the_first_line(sweep: FakeSweep) -> None:
    hold.hold(sweep.folder, "user", "a wrong learning rate")
    assert re.fullmatch(r"held since .* by user: a wrong learning rate", screen(sweep, 200)[0])


def test_failed_runs_come_with_class_reason_log_and_the_command_that_goes_on(sweep: FakeSweep) -> None:
    lines = screen(sweep, 200)
    at = next(place for place, line in enumerate(lines) if line.startswith("baseline-seed5: "))
    assert lines[at] == "baseline-seed5: failed: user_error: data.path: /scratch/cifar/train.tar does not exist. Put it there."
    assert lines[at + 1] == f"    log: {sweep.of('baseline', 5).log}"
    assert lines[-1] == "    python -m hpc.launch --sweep YOUR_SWEEP.yaml --retry failed"
    assert "nobody has 4 runs (1 new, 1 lost, 1 stopped, 1 extend); to go on:" in lines


def test_a_low_screen_keeps_what_is_urgent_and_counts_the_rest(sweep: FakeSweep) -> None:
    lines = screen(sweep, 100, height=24)
    rows = [line for line in lines if re.match(r"\S+-seed\d ", line)]
    assert 3 <= len(rows) < 12 and sum("failed: " in row for row in rows) == 2
    rest = next(line for line in lines if line.startswith("... and "))
    assert int(rest.split()[2]) == 12 - len(rows)


@pytest.mark.parametrize(
    ("uid", "label", "words"),
    [
        (0, "cancelled by site", "CANCELLED: by the site (root); GPU use 12 % over its last 90 min"),
        (1001, "cancelled by site", "CANCELLED: by the site (uid 1001); GPU use 12 % over its last 90 min"),
        (None, "cancelled", "by the user or the site"),
    ],
)
def test_accounting_says_who_cancelled(sweep: FakeSweep, monkeypatch: pytest.MonkeyPatch, uid: int | None, label: str, words: str) -> None:
    asked: list[list[str]] = []

    def who(jobs: list[str]) -> dict[str, int]:
        asked.append(jobs)
        return {} if uid is None else dict.fromkeys(jobs, uid)

    monkeypatch.setattr(status_look, "who_cancelled", who)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    use(sweep, "se", 1, pct=12, minutes=90, name="NVIDIA H100")
    memory = status_look.Memory()
    look = [status_look.take(sweep.folder, memory) for _ in range(3)][-1]
    assert asked == [["7_7"]], "once is enough"
    text = render(look, 200, is_ascii=True).plain
    line = next(line for line in text.splitlines() if line.startswith("se-seed1: "))
    assert line.startswith(f"se-seed1: {label}: ") and words in line


def use(sweep: FakeSweep, arm: str, seed: int, *, pct: float, minutes: int, name: str, generation: int = 1) -> None:
    """A sample a minute until now."""
    gpu = {"id": "GPU-1", "name": name, "util_pct": pct, "memory_used_mb": 1.0, "memory_total_mb": 80_000.0}
    samples = [{"time": time.time() - 60 * (minutes - minute - 1), "gpus": [gpu]} for minute in range(minutes)]
    sweep.of(arm, seed).gpu_use(generation).write_text("".join(json.dumps(sample) + "\n" for sample in samples) + '{"time": 17')


def limit(sweep: FakeSweep, **site: object) -> None:
    (entry,) = Submissions.read(sweep.folder).submissions
    Submissions().with_entry(Submission(**{**vars(entry), "site": {"name": "nyu-torch", **site}})).write(sweep.folder)


@pytest.mark.parametrize(
    ("pct", "minutes", "name", "warns"),
    [
        (23, 95, "NVIDIA H200", True),
        (23, 80, "NVIDIA H200", False),  # not 75 % of the window yet
        (61, 110, "NVIDIA H200", False),
        (23, 110, "NVIDIA L40S", False),  # the site says nothing of these
    ],
)
def test_idle_gpus_are_warned_of_before_the_sites_line(sweep: FakeSweep, pct: float, minutes: int, name: str, warns: bool) -> None:
    limit(sweep, low_use_pct={"h200": 60}, low_use_window_min=120)
    use(sweep, "baseline", 1, pct=pct, minutes=minutes, name=name, generation=2)
    jobs = slurm.listed_jobs()
    assert jobs is not None
    jobs["7_1"] = slurm.ListedJob(job_id="7_1", name=jobs["7_1"].name, state="RUNNING", reason="None", start=time.time() - 7200)
    found = status_look.take(sweep.folder).low_use
    line = "baseline-seed1: GPU use 23 % over 95 min; nyu-torch cancels below 60 % after 120 min: pack more runs on a GPU"
    assert bool(found) == warns and (not warns or found[0].startswith(line)), found


def state_of(sweep: FakeSweep, arm: str, seed: int) -> RunState:
    return next(state for state in run_states(sweep.folder, sweep.plan, Queue()) if state.run_id == sweep.ids[arm, seed])


@pytest.mark.parametrize(
    ("head", "device", "hours"),
    [
        (RunHead(epochs=6, ranks=4, device="cuda"), "gpu", 4 * 2.5),
        (RunHead(epochs=6, ranks=2, threads=3, device="cpu"), "cpu", 6 * 2.5),
    ],
)
def test_hours_are_those_of_every_attempt_times_what_it_held(sweep: FakeSweep, head: RunHead, device: str, hours: float) -> None:
    """1.5 h of the first attempt, 1 h until now of the second."""
    found = spent(state_of(sweep, "baseline", 1), head, {})
    assert found is not None and (found.device, found.hours) == (device, pytest.approx(hours, abs=0.01))
    assert spent(state_of(sweep, "se", 5), head, {}) is None


def test_runs_side_by_side_share_their_gpus_hours(sweep: FakeSweep) -> None:
    side_by_side = Submission(id="0001", created=0, code="1", mode="slurm", tasks=(), job_id="7", at_a_time=8, gpus=2)
    found = spent(state_of(sweep, "baseline", 1), RunHead(epochs=6, device="cuda"), {"7": side_by_side})
    assert found is not None and found.hours == pytest.approx(2.5 / 4, abs=0.01)


def test_an_end_that_was_inferred_days_later_is_no_time_spent(sweep: FakeSweep) -> None:
    sweep.of("baseline", 1).end(1).write_text(json.dumps({"ending": "unknown", "inferred": True, "time": time.time() + 86400}))
    found = spent(state_of(sweep, "baseline", 1), RunHead(epochs=6, device="cuda"), {})
    assert found is not None and found.hours == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize(
    ("tasks", "end"),
    [
        ([TaskLeft(seconds=50, is_running=True), TaskLeft(seconds=80, is_running=True)], 180),
        ([TaskLeft(seconds=50, is_running=True), TaskLeft(seconds=60, is_running=False), TaskLeft(seconds=10, is_running=False)], 220),
        ([TaskLeft(seconds=60, is_running=False, start=500)], 560),
        ([TaskLeft(seconds=60, is_running=False)], None),
    ],
)
def test_when_everything_is_done_follows_from_what_runs_now(tasks: list[TaskLeft], end: float | None) -> None:
    assert last_end(tasks, now=100) == end


@pytest.mark.parametrize("trial", range(25))
def test_no_damage_raises_or_shows_a_finished_run_as_anything_else(sweep: FakeSweep, trial: int) -> None:
    draw = random.Random(trial)
    runs = [folder for folder in sweep.folder.path.iterdir() if folder.is_dir()]
    kept = {sweep.of("baseline", 0).result, sweep.of("baseline", 0).run_yaml}
    files = sorted(path for folder in runs for path in folder.rglob("*") if path.is_file() and path not in kept)
    files += [sweep.folder.submission]
    for path in draw.sample(files, draw.randrange(1, len(files))):
        content = path.read_bytes()
        path.unlink()
        kind = draw.randrange(4)
        if kind == 1:
            path.write_bytes(content[: draw.randrange(len(content) + 1)])
        elif kind == 2:
            path.write_bytes(draw.randbytes(draw.randrange(300)))
        elif kind == 3 and path != sweep.folder.submission:
            path.mkdir()
    assert status.main([str(sweep.folder.path)]) in (1, 3)
    assert status.main([str(sweep.folder.path), "--json"]) in (1, 3)
    states = {state.run_id: state.state for state in run_states(sweep.folder, sweep.plan, Queue())}
    finished = [run_id for run_id, state in states.items() if state == "finished"]
    assert finished == [sweep.ids["baseline", 0]]


def test_the_end_of_a_journal_gives_what_the_whole_gives(sweep: FakeSweep) -> None:
    sweep.train("baseline", 1, range(100, 151), generation=1)  # lost when the second attempt began further back
    row = progress_of(state_of(sweep, "baseline", 1))
    assert (row.epoch, row.epochs, row.epoch_s) == (150, 300, 4.5)
