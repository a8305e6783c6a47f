"""What the batch script saw, beside what the supervisor could say: states, budgets and the next attempt go by both."""

import os
from pathlib import Path

import pytest

from hpc.batch_word import known_end, record_killed
from hpc.canceller import refine
from hpc.paths import SweepFolder
from hpc.requeue import UNASKED
from seresnet import attempts
from seresnet.attempts import Claim, Owner
from seresnet.run_folder import RunFolder


def _claim(tmp_path: Path, restart: int = 1, job: str | None = "7_1") -> tuple[RunFolder, Claim]:
    folder = RunFolder(path=tmp_path / "sweep" / "run0")
    folder.create()
    SweepFolder(tmp_path / "sweep").logs.mkdir()
    owner = Owner(host="n1", pid=5, cluster="c", raw_job_id="9" if job else None, array_job_id=job, restart_count=restart)
    claim = Claim(generation=1, owner=owner, base=None)
    attempts.publish_claim(folder, claim)
    return folder, claim


def _saw(tmp_path: Path, text: str, name: str = "batch-c-7_1-1") -> None:
    (tmp_path / "sweep" / "logs" / name).write_text(text)


def _known(folder: RunFolder, claim: Claim) -> str | None:
    end = known_end(folder, claim)
    return end.ending if end else None


@pytest.mark.parametrize(
    ("recorded", "saw", "known"),
    [
        ("stopped", "cancelled 75", "cancelled"),
        ("stopped", "preempted 75", "preempted"),
        ("stopped", "", "stopped"),
        ("stopped", "nonsense", "stopped"),
        ("crashed", "cancelled 75", "crashed"),
        ("preempted", "cancelled 75", "preempted"),
        (None, "killed 137", "killed"),
        (None, "cancelled 137", "cancelled"),
        (None, "", None),
    ],
)
def test_the_batch_scripts_word_counts_where_nobody_else_could_tell(
    tmp_path: Path, recorded: str | None, saw: str, known: str | None
) -> None:
    folder, claim = _claim(tmp_path)
    if recorded:
        attempts.write_end(folder, 1, recorded, reason="SIGTERM")
    _saw(tmp_path, saw)
    assert _known(folder, claim) == known


@pytest.mark.parametrize("name", ["batch-c-7_1-0", "batch-c-7_2-1", "batch-other-7_1-1"])
def test_a_word_about_another_start_or_job_says_nothing(tmp_path: Path, name: str) -> None:
    folder, claim = _claim(tmp_path)
    attempts.write_end(folder, 1, "stopped")
    _saw(tmp_path, "cancelled 75", name)
    assert _known(folder, claim) == "stopped"


def test_a_word_that_is_older_than_the_claim_is_about_another_job_of_that_number(tmp_path: Path) -> None:
    folder, claim = _claim(tmp_path)
    _saw(tmp_path, "cancelled 75")
    os.utime(tmp_path / "sweep" / "logs" / "batch-c-7_1-1", (1e9, 1e9))
    assert known_end(folder, claim) is None


def test_who_cancelled_is_put_into_the_reason_that_the_batch_script_made(tmp_path: Path) -> None:
    folder, claim = _claim(tmp_path)
    attempts.write_end(folder, 1, "stopped", reason=f"SIGTERM: state saved; {UNASKED}")
    _saw(tmp_path, "cancelled 75")
    end = known_end(folder, claim)
    assert end is not None
    assert refine(end.ending, end.reason, "7_1", {"7_1": 0}, owner=5)[1] == (
        "SIGTERM: state saved; by the site (root), as the batch script saw"
    )


def test_a_time_limit_in_a_container_draws_from_its_budget(tmp_path: Path) -> None:
    folder, claim = _claim(tmp_path)
    attempts.write_end(folder, 1, "stopped", reason=UNASKED, budget=None, step_before=5, durable_step=5)
    _saw(tmp_path, "timed_out 75")
    end = known_end(folder, claim)
    assert end is not None and end.facts["budget"] == "time limits"


def test_a_killed_supervisor_is_recorded_before_the_next_claimant_guesses(tmp_path: Path) -> None:
    folder, _ = _claim(tmp_path)
    _saw(tmp_path, "killed 137")
    record_killed(folder)
    end = attempts.read_end(folder, 1)
    assert end is not None and (end.ending, end.inferred) == ("killed", True)


def test_what_a_rank_said_before_its_supervisor_was_killed_counts_more(tmp_path: Path) -> None:
    folder, claim = _claim(tmp_path)
    folder.rank_exit(1, 0).write_text('{"ending": "user_error", "code": 78}')
    _saw(tmp_path, "killed 137")
    record_killed(folder)
    assert known_end(folder, claim) is None and attempts.read_end(folder, 1) is None
