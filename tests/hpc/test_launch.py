"""Launching: what is sent, what is written before, and what a second launch does. SLURM and training are stood in for by records.

Reading a sweep, a supervisor's work and a real cluster have tests of their own; one slow test here goes the whole way.
"""

import os
import time
from dataclasses import replace

import pytest
from launch_bench import SWEEP, Bench, attempt, finish

from hpc import status
from hpc.paths import Plan, Submissions
from seresnet.errors import ConfigError, SubmissionError

# --- what is sent ---


def test_a_first_launch_sends_every_run_as_one_array(bench: Bench) -> None:
    code, text = bench.launch()
    assert code == 0
    assert len(bench.sent) == 1
    assert bench.tasks_sent() == [("baseline-s0",), ("baseline-s1",), ("se-s0",), ("se-s1",)]
    assert "4 runs in 2 arms: 4 to send as 4 tasks (4 x 1 rank)." in text


def test_the_intent_is_on_disk_before_sbatch_and_the_job_id_after(bench: Bench) -> None:
    bench.launch()
    (before,) = bench.records_at_sbatch[0].submissions
    (after,) = Submissions.read(bench.sweep).submissions
    assert (before.state, before.job_id, before.tasks) == ("intent", None, ("0001/0", "0001/1", "0001/2", "0001/3"))
    assert (after.state, after.job_id) == ("submitted", "101")


def test_second_launch_of_a_finished_sweep_submits_nothing(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    for slug in bench.slugs():
        finish(bench.run(slug))
    code, text = bench.launch()
    assert (code, len(bench.sent)) == (0, 1)
    assert "nothing left: all 4 runs are finished" in text


def test_one_removed_result_is_one_run_sent(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    for slug in bench.slugs():
        attempt(bench.run(slug), "finished")
        finish(bench.run(slug))
    bench.run("se-s0").result.unlink()
    bench.launch()
    assert bench.tasks_sent() == [("se-s0",)]


def test_what_is_queued_or_running_is_not_sent_again(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    bench.list_job("101_0", "RUNNING")
    bench.list_job("101_1", "PENDING")
    finish(bench.run("se-s0"))
    bench.launch()
    assert bench.tasks_sent() == [("se-s1",)]


def test_a_live_claim_from_elsewhere_is_left_alone(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    attempt(bench.run("se-s1"), None)
    bench.run("se-s1").beat(1).write_text("1")
    bench.launch()
    assert bench.tasks_sent() == [("baseline-s0",), ("baseline-s1",), ("se-s0",)]


def test_a_beat_that_stood_still_is_a_lost_run(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    attempt(bench.run("se-s1"), None)
    bench.run("se-s1").beat(1).write_text("1")
    long_ago = time.time() - 600
    os.utime(bench.run("se-s1").beat(1), (long_ago, long_ago))
    bench.launch()
    assert ("se-s1",) in bench.tasks_sent()


def test_a_squeue_that_does_not_answer_proves_nothing(bench: Bench) -> None:
    bench.launch()
    bench.listed = None
    code, text = bench.launch()
    assert (code, len(bench.sent)) == (0, 1)
    assert "squeue does not answer" in text
    assert "nothing to send: 4 of 4 runs are on their way" in text


def test_an_array_whose_id_was_never_written_down_is_found_by_its_name(bench: Bench) -> None:
    bench.launch()
    (entry,) = Submissions.read(bench.sweep).submissions
    Submissions().with_entry(replace(entry, state="intent", job_id=None)).write(bench.sweep)
    bench.launch()
    assert len(bench.sent) == 1, "a second array was sent for runs that are queued"


def test_a_refusal_is_told_and_the_next_launch_sends_again(bench: Bench) -> None:
    bench.refusal = "sbatch refused (exit 1): Invalid account"
    with pytest.raises(SubmissionError, match="Invalid account"):
        bench.launch()
    bench.refusal = None
    bench.launch()
    assert len(bench.tasks_sent()) == 4


def test_runs_that_sbatch_refused_are_not_queued_however_silent_squeue_is(bench: Bench) -> None:
    bench.refusal, bench.listed = "sbatch refused (exit 1): Could not establish a configuration source", None
    with pytest.raises(SubmissionError):
        bench.launch()
    bench.refusal = None
    assert "4 runs in 2 arms: 4 to send" in bench.launch(dry_run=True)[1]


@pytest.mark.parametrize("ending", ["preempted", "timed_out", "node_failed", "stopped"])
def test_interrupted_runs_are_taken_up_by_a_plain_launch(bench: Bench, ending: str) -> None:
    bench.launch()
    bench.listed = {}
    attempt(bench.run("baseline-s0"), ending)
    bench.launch()
    assert len(bench.tasks_sent()) == 4


@pytest.mark.parametrize("ending", ["crashed", "user_error", "diverged", "killed", "out_of_memory", "hung"])
def test_failed_runs_need_retry_and_the_launch_says_so(bench: Bench, ending: str) -> None:
    bench.launch()
    bench.listed = {}
    attempt(bench.run("se-s1"), ending)
    _, text = bench.launch()
    assert ("se-s1",) not in bench.tasks_sent()
    assert f"failed and not sent again without --retry failed: se-s1 ({ending})" in text
    bench.listed = {}
    bench.launch(retry=("failed",))
    assert ("se-s1",) in bench.tasks_sent()


@pytest.mark.parametrize("ending", ["cancelled", "cancelled_by_site"])
def test_cancelled_runs_need_retry_and_the_launch_says_so(bench: Bench, ending: str) -> None:
    bench.launch()
    bench.listed = {}
    attempt(bench.run("se-s1"), ending)
    _, text = bench.launch()
    assert ("se-s1",) not in bench.tasks_sent()
    assert f"cancelled and not sent again without --retry cancelled: se-s1 ({ending})" in text
    bench.listed = {}
    bench.launch(retry=("cancelled",))
    assert bench.tasks_sent() == [("se-s1",)]


@pytest.mark.parametrize("name", ["se-s1", "ID", "BEGINNING", "FOLDER"])
def test_a_run_to_retry_may_be_named_in_four_ways(bench: Bench, name: str) -> None:
    bench.launch()
    bench.listed = {}
    attempt(bench.run("se-s1"), "crashed")
    run_id = Plan.read(bench.sweep).find("se-s1")
    words = {"ID": run_id, "BEGINNING": run_id[:5], "FOLDER": bench.run("se-s1").path.name}
    bench.launch(retry=(words.get(name, name),))
    assert bench.tasks_sent() == [("se-s1",)]


def test_an_arm_to_retry_means_its_runs_that_can_be_sent(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    attempt(bench.run("se-s1"), "crashed")
    finish(bench.run("se-s0"))
    bench.launch(retry=("se",))
    assert bench.tasks_sent() == [("se-s1",)]
    finish(bench.run("se-s1"))
    with pytest.raises(ConfigError, match=r"--retry se: no run of this arm can be sent: 2 finished\."):
        bench.launch(retry=("se",))


def test_retry_of_a_run_sends_that_run_alone(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    attempt(bench.run("se-s1"), "crashed")
    bench.launch(retry=("se-s1",))
    assert bench.tasks_sent() == [("se-s1",)]


@pytest.mark.parametrize(
    ("retry", "sent"),
    [
        (("failed",), {"baseline-s0"}),
        (("lost",), {"se-s1"}),
        (("failed", "se-s0"), {"baseline-s0", "se-s0"}),
        (("lost", "failed"), {"baseline-s0", "se-s1"}),
        (("all",), {"baseline-s0", "baseline-s1", "se-s0", "se-s1"}),
    ],
)
def test_retry_sends_all_that_is_asked_for_and_nothing_else(bench: Bench, retry: tuple[str, ...], sent: set[str]) -> None:
    bench.launch()
    bench.listed = {}
    attempt(bench.run("baseline-s0"), "crashed")
    attempt(bench.run("se-s0"), "stopped")
    attempt(bench.run("se-s1"), None)
    os.utime(bench.run("se-s1").claim(1), (0, 0))
    bench.launch(retry=retry)
    assert {slug for task in bench.tasks_sent() for slug in task} == sent


def test_retry_that_names_no_run_says_what_a_plain_launch_would_send(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    code, text = bench.launch(retry=("failed",))
    assert (code, len(bench.sent)) == (1, 1)
    assert "no run is what --retry names, and 4 runs a plain launch would send" in text


def test_retry_of_a_finished_run_is_refused(bench: Bench) -> None:
    bench.launch()
    finish(bench.run("se-s1"))
    with pytest.raises(ConfigError, match=r"--retry se-s1: this run is finished\. Say --rerun se-s1"):
        bench.launch(retry=("se-s1",))


def test_only_failed_runs_left_is_exit_1_with_reason_and_log(bench: Bench) -> None:
    bench.launch()
    bench.listed = {}
    for slug in ("baseline-s0", "baseline-s1", "se-s0"):
        finish(bench.run(slug))
    attempt(bench.run("se-s1"), "diverged")
    code, text = bench.launch()
    assert code == 1
    assert "se-s1: failed: diverged: because of a test" in text
    assert str(bench.run("se-s1").log) in text


def test_more_epochs_within_the_horizon_extend_finished_runs(bench: Bench) -> None:
    bench.launch("optim.schedule_epochs=10", "train.epochs=2")
    bench.listed = {}
    for slug in bench.slugs():
        attempt(bench.run(slug), "finished")
        finish(bench.run(slug), epochs=2)
    _, text = bench.launch("optim.schedule_epochs=10", "train.epochs=4")
    assert len(bench.tasks_sent()) == 4
    assert "extend 4 runs" in text


def test_runs_with_more_ranks_are_an_array_of_their_own_shape(bench: Bench) -> None:
    bench.file.write_text(SWEEP + "site: slurm\n" + "pack: {runs_per_task: 2}\n")
    bench.file.write_text(
        bench.file.read_text().replace("{model.attention: se}", "{model.attention: se, train.ranks: 2, train.micro_batch_size: 64}")
    )
    bench.launch(site=None)
    assert [(entry["shape"].ranks, entry["shape"].gpus, len(entry["tasks"])) for entry in bench.sent] == [(1, 0, 1), (2, 0, 1)]
    assert [entry["job_name"].rpartition("-")[2] for entry in bench.sent] == ["0001", "0002"]


def test_gpus_are_asked_for_where_the_device_is_cuda(bench: Bench) -> None:
    bench.launch("train.device=cuda")
    assert bench.sent[0]["shape"].gpus == 1


def test_the_plan_says_which_arms_an_override_has_made_the_same(bench: Bench) -> None:
    _, text = bench.launch("model.attention=se")
    assert "2 runs in 2 arms: 2 to send" in text
    assert "note: 2 runs shared by baseline and se, trained once" in text, text


def test_more_epochs_without_a_horizon_are_said_to_be_other_runs_whose_names_mean_the_new_ones(bench: Bench) -> None:
    bench.launch()
    before = Plan.read(bench.sweep).find("se-s0")
    code, text = bench.launch("train.epochs=3")
    plan = Plan.read(bench.sweep)
    assert code == 0 and "edited: +4" in text and "differ from runs no longer asked for by train.epochs alone" in text, text
    assert plan.find("se-s0") != before and plan.find(before) == before
    assert "train.epochs alone" not in bench.launch("train.epochs=3", "optim.lr=0.3")[1], "another difference is another experiment"


def test_the_command_that_goes_on_carries_the_overrides(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.launch("optim.lr=0.3")
    attempt(bench.run("se-s0"), "stopped")
    bench.listed = {}
    status.main([str(bench.sweep.path)])
    assert "    python -m hpc.launch --sweep demo.yaml optim.lr=0.3 site=slurm" in capsys.readouterr().out.splitlines()
