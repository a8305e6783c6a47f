"""The task of a trial: every chosen run for some steps, stopped, started again and evaluated, one run after another.

Started by hpc.worker in a job and by hpc.trials on this machine. One invariant: exit 0 means that every run has passed; a task that
is cut off (75) goes on with those that have not.
"""

import argparse
import logging
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc import task, trials
from hpc.paths import Submission, SweepFolder
from hpc.ranks import POLL_S, Outcome, RankGroup, describe
from hpc.task import RANK_COMMAND
from hpc.trials import TrialRun, TrialTask
from seresnet import claims
from seresnet.durable import parse_json, write_json_durably
from seresnet.errors import ToolkitError
from seresnet.exits import Exit
from seresnet.run_folder import RunFolder, RunRecord
from seresnet.signals import StopFlag

log = logging.getLogger("hpc.supervisor")

#: As seresnet.trial calls them, which imports torch.
SAVED, REPORT = "saved.json", "trial.json"


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the trials run, as hpc.task says it of every task."""

    job: task.Job
    stop: StopFlag
    code_dir: Path
    env: Mapping[str, str]

    def should_stop(self) -> str | None:
        """Why the task has to stop now: a signal, or the end of its time."""
        if self.stop.signal_name is None and self.job.is_over():
            self.stop.signal_name = "deadline"
        return self.stop.signal_name


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one trial."""

    code: int  # 0: passed; 75: told to stop
    reason: str

    @property
    def passed(self) -> bool:
        return self.code == 0


def run_trials(sweep: SweepFolder, name: str, *, stop: StopFlag, rank_command: Sequence[str] = RANK_COMMAND) -> int:
    """Try the runs that have not passed yet; prints a line each. 0: all passed; 75: told to stop; else the first failure's code."""
    told = TrialTask.read(sweep, name)
    place = _look_around(sweep, told, stop)
    command = [*rank_command, "--trial", str(told.steps)]
    outcomes, code = trials.read_outcomes(sweep, name), 0
    for run in told.runs:
        if outcomes.get(run.run_id, {}).get("passed"):
            continue
        verdict = _try(place, run.folder(sweep), run, name, command)
        print(_line(run, verdict, run.folder(sweep)), flush=True)
        if verdict.code == Exit.STOPPED:
            return int(verdict.code)
        report = _report(run.folder(sweep)) if verdict.passed else None
        outcomes[run.run_id] = {"passed": verdict.passed, "reason": verdict.reason, "shape": run.shape, "report": report}
        write_json_durably(trials.outcomes_path(sweep, name), outcomes)
        code = code or verdict.code
    return code


def _look_around(sweep: SweepFolder, told: TrialTask, stop: StopFlag) -> Place:
    sent_as = Submission(id=told.name, created=0.0, code=told.code, mode="slurm", tasks=(told.name,))
    return Place(
        job=task.look_at_job(os.environ, float(told.site.get("signal_delay_s", 60.0)), stop),
        stop=stop,
        code_dir=task.checked_code(sweep, sent_as).resolve(),
        env=task.task_environment(os.environ, told.site),
    )


def _try(place: Place, folder: RunFolder, run: TrialRun, name: str, command: Sequence[str]) -> Verdict:
    """Both starts of one run."""
    try:
        folder.create()
        RunRecord(run_id=run.run_id, slug=run.slug, config=run.config).write(folder)
        first = _start(place, folder, run, name, command, is_first=True)
        if first is not None:
            return first
        second = _start(place, folder, run, name, command, is_first=False)
        if second is not None:
            return second
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
        return Verdict(code=0, reason="passed")
    except ToolkitError as error:
        return Verdict(code=Exit.USER_ERROR, reason=str(error))
    except OSError as error:
        return Verdict(code=1, reason=f"{type(error).__name__}: {error}")


def _start(place: Place, folder: RunFolder, run: TrialRun, name: str, command: Sequence[str], *, is_first: bool) -> Verdict | None:
    """One start of the ranks under a claim, as in training; None if it ended as it should."""
    owner = claims.this_process(task_try=claims.newest_generation(folder) + 1, facts={"task": name})
    claim = claims.acquire(folder, owner, base=(lambda folder: None) if is_first else None)
    if is_first:
        _clear(folder)
    env = {**place.env, "SERESNET_GENERATION": str(claim.generation)}
    words = [word.replace("{run_dir}", str(folder.path.resolve())) for word in command]
    group = RankGroup(words, run.ranks, env=env, cwd=place.code_dir, log=folder.log)
    heart = claims.Heart(folder, claim.generation, lambda: None).start()
    try:
        while (outcome := group.poll(place.should_stop())) is None:
            time.sleep(POLL_S)
    finally:
        group.close()
        heart.stop()
    verdict = _judge(folder, claim.generation, outcome, is_first=is_first)
    ending, reason = ("stopped", "as a trial does") if verdict is None else ("trial failed", verdict.reason)
    claims.write_end(folder, claim.generation, ending, reason=reason, code=0 if verdict is None else verdict.code)
    return verdict


def _clear(folder: RunFolder) -> None:
    """Forget an earlier trial of this run; only its owner may."""
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    for name in (SAVED, REPORT):
        (folder.path / name).unlink(missing_ok=True)
    folder.create()


def _judge(folder: RunFolder, generation: int, outcome: Outcome, *, is_first: bool) -> Verdict | None:
    """None: the first start saved and left with 75, or the second left its report."""
    if outcome.stop_reason is not None:
        return Verdict(code=Exit.STOPPED, reason=f"stopped: {outcome.stop_reason}")
    wanted = Exit.STOPPED if is_first else Exit.FINISHED
    left = folder.path / (SAVED if is_first else REPORT)
    if set(outcome.statuses) == {int(wanted)} and left.exists():
        return None
    when = "" if is_first else "when it was started again: "
    if outcome.culprit is None and not outcome.was_killed_by_us:
        return Verdict(code=1, reason=f"crashed: {when}its ranks exited {', '.join(map(str, outcome.statuses))} and left no {left.name}")
    ended = describe(folder, generation, outcome)
    code = Exit.USER_ERROR if ended.ending == "user_error" else 1
    return Verdict(code=int(code), reason=f"{ended.ending}: {when}{ended.reason}")


def _line(run: TrialRun, verdict: Verdict, folder: RunFolder) -> str:
    who = f"{', '.join(run.arms)} ({run.slug})"
    if verdict.code == Exit.STOPPED:
        return f"{who}: {verdict.reason}"
    if not verdict.passed:
        return f"{who}: FAILED: {verdict.reason}\n    log: {folder.log}"
    report = _report(folder)
    speed = f"{_seconds(report['step_s'])} a step, {report['images_per_s']:,.0f} images/s, {report['peak_memory_mb'] / 1000:.1f} GB"
    return f"{who}: passed{f' ({run.note})' if run.note else ''}: {speed}"


def _report(folder: RunFolder) -> Mapping[str, Any]:
    value = parse_json((folder.path / REPORT).read_text())
    assert isinstance(value, dict)
    return value


def _seconds(value: float) -> str:
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.2g} s"


# --- commands ---


def main_task(sweep: SweepFolder, name: str, stop: StopFlag) -> int:
    """run_trials with logging set up and what users can cause turned into one line and an exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S", stream=sys.stdout)
    try:
        code = run_trials(sweep, name, stop=stop)
    except ToolkitError as error:
        print(error, file=sys.stderr)
        code = int(Exit.USER_ERROR)
    sys.stdout.flush()
    sys.stderr.flush()
    return int(code)


def main(argv: Sequence[str] | None = None) -> int:
    """One trial of a sweep, as hpc.trials starts it on this machine."""
    stop = StopFlag()
    stop.install()
    parser = argparse.ArgumentParser(
        prog="python -m hpc.trial_task", description="Try runs of a sweep; python -m hpc.launch --smoke starts it."
    )
    parser.add_argument("--sweep", type=Path, required=True, help="folder of a sweep")
    parser.add_argument("--task", required=True, help="name of a trial, such as trial/smoke-0001")
    args = parser.parse_args(argv)
    return main_task(SweepFolder(args.sweep), args.task, stop)


if __name__ == "__main__":
    sys.exit(main())
