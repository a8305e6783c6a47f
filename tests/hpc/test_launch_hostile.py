"""What people type and leave behind that no launch may take for something else: options that exclude each other, damaged records."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from launch_bench import SWEEP, Bench, attempt

from hpc import code_snapshot, control, hold, launch_watch, slurm_control
from hpc.control import Changes
from hpc.gpu_cap import cap_arrays
from hpc.launch import main
from hpc.launcher import Request
from hpc.limits import Limits, Room
from hpc.paths import Plan, Submissions
from hpc.queued_arrays import queued_arrays
from seresnet.errors import ConfigError, SubmissionError

# --- the command line ---


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--hold", "--retry", "failed"], "--hold launches nothing, so --retry would do nothing beside it."),
        (["--debug", "se-s0", "--dry-run"], "--debug launches nothing, so --dry-run would do nothing beside it."),
        (["--new-site", "mine", "--cancel", "all"], "--new-site and --cancel are different things to do."),
        (["--smoke", "--calibrate"], "--smoke and --calibrate are different things to do."),
        (["--debug", ""], "--debug :  is no run of this sweep."),
    ],
)
def test_an_option_that_would_be_overlooked_is_refused(
    bench: Bench, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert main(["--sweep", str(bench.file), "site=slurm", *words]) == 2
    assert told in capsys.readouterr().err
    assert not bench.sent and not bench.sweep.path.exists()


@pytest.mark.parametrize("number", ["0", "-1", "\u00b2", "1.5", ""])
def test_a_number_of_gpus_that_is_none_is_a_sentence(capsys: pytest.CaptureFixture[str], number: str) -> None:
    with pytest.raises(SystemExit):
        main([f"--max-gpus={number}"])
    assert "is not a whole number from 1 on" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["all", "failed", "lost", "cancelled"])
def test_an_arm_is_not_called_like_a_word_of_the_command_line(bench: Bench, name: str) -> None:
    bench.file.write_text(SWEEP.replace("  se:", f"  {name}:"))
    with pytest.raises(ConfigError, match=f"arms.{name}: '{name}' is a word of --retry"):
        bench.launch()


def test_a_mistyped_retry_is_told_the_words(bench: Bench) -> None:
    bench.launch()
    with pytest.raises(ConfigError, match=r"--retry fialed: .* Words: failed, lost, cancelled, all\."):
        bench.launch(retry=("fialed",))


def test_another_file_of_the_same_name_cancels_nothing(bench: Bench) -> None:
    bench.launch()
    other = bench.file.with_name("other.yaml")
    shutil.copy(bench.file, other)
    with pytest.raises(ConfigError, match="say --renamed"):
        control.change_queued(Request(sweep_file=other), Changes(cancel=("all",)))
    assert hold.cancelled(bench.sweep) == {}


# --- a dry run ---


def test_a_dry_run_tells_of_the_trial_that_goes_first(bench: Bench) -> None:
    assert (
        "first a smoke test of 20 steps each, one after another: baseline-s0, se-s0; what follows"
        in bench.launch(dry_run=True, smoke=True)[1]
    )
    text = bench.launch(dry_run=True, calibrate=True)[1]
    assert "first a timing of 20 steps each" in text and "#SBATCH" not in text


# --- records that somebody damaged ---


@pytest.mark.parametrize(
    ("key", "value"),
    [("source", 3), ("salt", None), ("arms", {"se": ["unknown"]}), ("tasks", {"0001/0": ["unknown"]}), ("folder", "../elsewhere")],
)
def test_a_plan_whose_parts_do_not_fit_is_refused_by_name(bench: Bench, key: str, value: Any) -> None:
    bench.launch()
    record = json.loads(bench.sweep.plan.read_text())
    where = next(iter(record["runs"].values())) if key == "folder" else record
    where[key] = value
    bench.sweep.plan.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"plan\.json: not a record of this version: "):
        Plan.read(bench.sweep)


@pytest.mark.parametrize("since", ["x", None, 1e300, [1]])
def test_a_hold_whose_time_cannot_be_read_holds_all_the_same(bench: Bench, since: Any) -> None:
    bench.launch()
    bench.sweep.hold.write_text(json.dumps({"since": since, "by": "user", "reason": "--hold"}))
    assert str(hold.why_held(bench.sweep)) == "held by user: --hold"


def test_failures_that_cannot_be_read_are_counted_anew(bench: Bench) -> None:
    bench.launch()
    (bench.sweep.path / "failures.json").write_text('{"crashed: boom": 3}')
    plan = Plan.read(bench.sweep)
    assert hold.note_failure(bench.sweep, plan, next(iter(plan.runs)), "crashed", "boom", 0) is None


def test_a_disk_that_fills_while_code_is_copied_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, to: Path, **_: object) -> None:
        to.mkdir(parents=True)
        raise shutil.Error([(f"{name}", f"{to}", f"[Errno 28] No space left on device: '{name}' -> '{to}'") for name in range(100)])

    monkeypatch.setattr(shutil, "copytree", full)
    with pytest.raises(SubmissionError, match=r"code: the code cannot be copied here: \[Errno 28\] No space left on device\. Correct"):
        code_snapshot.snapshot_code(tmp_path / "code")
    assert [*(tmp_path / "code").iterdir()] == []


# --- --wait, which sends more as room appears ---


def _send_rest(bench: Bench, monkeypatch: pytest.MonkeyPatch, between: Any) -> str:
    """A launch with room for two of four tasks that waits; `between` happens before there is room for the others."""

    def wait(session: Any, send_more: Any) -> int:
        between()
        bench.limits = Limits()
        send_more()
        return 0

    monkeypatch.setattr(launch_watch, "wait", wait)
    bench.limits = Limits(rooms=(Room(name="MaxSubmit of QOS q", limit=2, queued=0),))
    return bench.launch(wait=True)[1]


def test_what_is_sent_later_runs_the_code_of_the_launch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def edit() -> None:
        monkeypatch.setattr(code_snapshot, "peek", lambda codes, root=None, user=None: ("0002", False))
        monkeypatch.setattr(code_snapshot, "changes", lambda old, user=None: ("changed seresnet/train.py",))

    _send_rest(bench, monkeypatch, edit)
    assert [entry.code for entry in Submissions.read(bench.sweep).submissions] == ["0001", "0001"]


def test_nothing_more_is_sent_once_the_sweep_is_held(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    text = _send_rest(bench, monkeypatch, lambda: hold.hold(bench.sweep, "user", "--hold"))
    assert len(bench.sent) == 1 and "Say --release first" in text


# --- the cap ---


def test_a_cap_touches_no_dependency_that_it_cannot_see(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.launch("train.device=cuda")
    entries = Submissions.read(bench.sweep).submissions
    arrays = queued_arrays(entries, dict.fromkeys(entries[0].tasks, "pending"))
    monkeypatch.setattr(slurm_control, "dependencies", lambda: None)
    monkeypatch.setattr(slurm_control, "update", lambda *asked: pytest.fail(f"asked {asked}"))
    with pytest.raises(SubmissionError, match="squeue does not answer, so nothing was capped"):
        cap_arrays(arrays, 1)


def test_the_smoke_test_is_shown_the_data_as_the_arrays_are(bench: Bench) -> None:
    bench.launch("data.dir=/somewhere/data", smoke=True)
    trial, array = bench.sent
    assert trial["visible"] == array["visible"] == [Path("/somewhere/data")]


def test_the_smoke_test_also_tries_arms_that_there_is_no_room_for_yet(bench: Bench) -> None:
    bench.limits = Limits(rooms=(Room(name="MaxSubmit of QOS q", limit=3, queued=0),))
    bench.launch(smoke=True)
    trial, array = bench.sent
    record = json.loads((bench.sweep.trials / "smoke-0001.json").read_text())
    assert (len(trial["tasks"]), len(array["tasks"])) == (1, 2)
    assert [run["slug"] for run in record["runs"]] == ["baseline-s0", "se-s0"]


def test_cancelling_what_has_failed_is_said_to_be_nothing(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    for slug in bench.slugs():
        attempt(bench.run(slug), "crashed")
    assert control.change_queued(Request(sweep_file=bench.file), Changes(cancel=("all",))) == 1
    assert hold.cancelled(bench.sweep) == {}
