"""Launching again on a real Slurm: edited code, edited YAML, runs trained again or longer, and an array whose launcher was killed."""

import json
import re
import shutil
from pathlib import Path

import pytest
from cluster import Cluster
from launched import SWEEP, Launched
from scenes import REPO

from seresnet import journal
from seresnet.run_folder import RunFolder, TrainResult

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]

REAL = SWEEP.replace("epochs: 2", "epochs: 10, checkpoint_every_s: 0.01").replace(
    "{{name: digits}}", "{{name: digits, train_images: 256, val_images: 64, test_images: 64}}"
)


def endings(run: Path) -> list[str]:
    return [json.loads(path.read_text())["ending"] for path in sorted(run.glob("attempts/*.end.json"))]


def the_run(launched: Launched, slug: str = "baseline-s0") -> Path:
    (found,) = launched.sweep.glob(f"{slug}-????????????")
    return found


def all_over(launched: Launched, timeout_s: float = 90.0) -> None:
    launched.wait_until(lambda: not launched.listed(), "everything is over", timeout_s)


def write_sweep(launched: Launched, text: str, seeds: object = 1, name: str = "demo.yaml") -> None:
    (launched.code / name).write_text(text.format(seeds=seeds))


# --- edited code ---


def real_training(launched: Launched) -> Path:
    """Real training in the working copy instead of the stand-in; the file that a test breaks."""
    shutil.copyfile(REPO / "seresnet" / "train.py", launched.code / "seresnet" / "train.py")
    return launched.code / "seresnet" / "recipe.py"


def break_at_epoch_7(recipe: Path) -> None:
    head = "        engine = self.engine\n        first = engine.step % engine.steps_per_epoch\n"
    text = recipe.read_text()
    assert text.count(head) == 1
    recipe.write_text(text.replace(head, f'{head}        if engine.epoch == 6:\n            raise RuntimeError("a bug of the user")\n'))


@pytest.mark.slow
def test_a_run_that_raised_at_epoch_7_goes_on_from_there_with_mended_code(cluster: Cluster, user_path: Path) -> None:
    launched = Launched(cluster, user_path, seeds=1, text=REAL)
    recipe = real_training(launched)
    whole = recipe.read_text()
    launched.run("--runs-dir", "undisturbed")
    break_at_epoch_7(recipe)
    launched.run()
    all_over(launched, 120)
    run = the_run(launched)
    assert set(endings(run)) == {"crashed"} and 3 <= len(endings(run)) <= 4, f"{endings(run)}\n{launched.say()}"
    assert not (run / "result.json").exists() and "a bug of the user" in (run / "log.txt").read_text()
    broken = len(endings(run))

    recipe.write_text(whole)
    said = launched.run(code=1)
    assert "failed and not sent again without --retry failed: baseline-s0 (crashed)" in said, said
    said = launched.run("--retry", "failed", code=2)
    assert "changed seresnet/recipe.py" in said and "--code new" in said, said
    assert len(launched.submissions()) == 1
    launched.run("--retry", "failed", "--code", "new")
    all_over(launched, 120)

    assert [entry["code"] for entry in launched.submissions()] == ["0001", "0002"]
    assert endings(run) == ["crashed"] * broken + ["finished"], launched.say()
    records = journal.read(RunFolder(path=run))
    assert [record.epoch for record in records] == list(range(1, 11))
    # The sixth is evaluated again, because its last step is saved before that.
    assert [record.generation for record in records] == [1] * 5 + [broken + 1] * 5, "an epoch from before the crash was trained again"
    assert re.findall(r"resumed run=\S+ step=(\d+) epoch=6 ", (run / "log.txt").read_text())[-1] == str(records[5].step)
    (other,) = (path.parent for path in launched.code.glob("undisturbed/demo/*/run.yaml"))
    result, quiet = TrainResult.read(RunFolder(path=run)), TrainResult.read(RunFolder(path=other))
    assert result and quiet and result.state_digest == quiet.state_digest, "other bits than a run that never raised"


def test_what_is_queued_does_not_see_an_edit_of_the_working_copy(cluster: Cluster, user_path: Path) -> None:
    for node in ("n1", "n2"):
        cluster.fill(node, seconds=600)
    launched = Launched(cluster, user_path, seeds=2)
    launched.run()
    for path in ("hpc/supervisor.py", "hpc/worker.py", "seresnet/train.py", "seresnet/__init__.py"):
        (launched.code / path).write_text("this is no Python\n")
    states = [state for task, (state, _, _) in launched.listed().items() if task.startswith(f"{launched.job}_")]
    assert states == ["PENDING"] * 2
    cluster.command("scancel", "--partition=high", "--user=hpctest")
    launched.wait_until(lambda: launched.finished() == 2, "both runs finish with the code that they were sent with")


def test_the_old_code_on_request(cluster: Cluster, user_path: Path) -> None:
    launched = Launched(cluster, user_path, seeds=2, acts="exit 1; exit 1; exit 1; exit 1")
    launched.run()
    all_over(launched)
    (launched.code / "seresnet" / "train.py").write_text("this is no Python\n")
    assert "changed seresnet/train.py" in launched.run("--retry", "baseline-s1", code=2)
    launched.acts = "finish"
    said = launched.run("--retry", "baseline-s1", "--code", "snapshot")
    assert "these runs get the old one, code/0001" in said, said
    all_over(launched)
    assert [entry["code"] for entry in launched.submissions()] == ["0001", "0001"]
    assert endings(the_run(launched, "baseline-s1"))[-1] == "finished" and "finished" not in endings(the_run(launched)), launched.say()


def test_a_finished_run_is_set_aside_and_trained_again_with_the_code_of_today(cluster: Cluster, user_path: Path) -> None:
    launched = Launched(cluster, user_path, seeds=2)
    launched.run()
    all_over(launched)
    before = (the_run(launched) / "result.json").read_bytes()
    with (launched.code / "seresnet" / "train.py").open("a") as program:
        program.write("# another program\n")
    said = launched.run("--rerun", "baseline-s0")
    assert "1 run set aside and trained again from the start" in said, said
    all_over(launched)
    (aside,) = launched.sweep.glob("baseline-s0-*.set-aside-0001")
    assert (aside / "result.json").read_bytes() == before
    assert endings(the_run(launched)) == ["finished"] == endings(the_run(launched, "baseline-s1")), launched.say()
    assert [(entry["code"], len(entry["tasks"])) for entry in launched.submissions()] == [("0001", 2), ("0002", 1)]
    assert "nothing left: all 2 runs are finished" in launched.run()


# --- an edited sweep ---

TWO_ARMS = SWEEP.replace("  baseline: {{}}\n", "  baseline: {{}}\n  se: {{model.attention: se}}\n")


def queued(launched: Launched) -> list[str]:
    """The slugs of the runs in what is listed."""
    plan = json.loads((launched.sweep / "plan.json").read_text())
    numbers = {entry["job_id"]: entry["id"] for entry in launched.submissions()}
    tasks = [f"{numbers[job]}/{index}" for job, _, index in (task.partition("_") for task in launched.listed())]
    return sorted(plan["runs"][run_id]["slug"] for task in tasks for run_id in plan["tasks"][task])


def test_an_edited_sweep_sends_what_is_new_and_drops_only_on_request(cluster: Cluster, user_path: Path) -> None:
    wide = TWO_ARMS.replace("cpus_per_rank: 1", "cpus_per_rank: 4")  # two tasks run, the others wait
    launched = Launched(cluster, user_path, seeds="[1, 0]", acts="serve; finish", text=wide)
    launched.run()
    launched.wait_until_serving(2)
    write_sweep(launched, wide.replace("  se: {{model.attention: se}}\n", "  eca: {{model.width: 8}}\n"), "[0]")
    said = launched.run()
    assert "edited: +1 (arm eca)  =1  -3 no longer asked" in said, said
    first = ["baseline-s0", "baseline-s1", "se-s0", "se-s1"]
    assert queued(launched) == sorted([*first, "eca-s0"]), "something that is no longer asked for was cancelled"
    said = launched.run("--drop-removed")
    assert "+0  =2  -3 dropped" in said and "cancelled 3 tasks" in said, said
    launched.wait_until(lambda: queued(launched) == ["baseline-s0", "eca-s0"], "dropped runs leave the queue, running and waiting ones")

    write_sweep(launched, wide, "[1, 0]")
    said = launched.run()
    assert "edited: +3 (arm se; seed 1)  =1  -1 no longer asked" in said, said
    assert queued(launched) == sorted([*first, "eca-s0"]) and len(launched.submissions()[-1]["tasks"]) == 3
    assert len(list(launched.sweep.glob("sweep.*.yaml"))) == 2, "an older sweep was not kept"
    launched.run("--cancel", "baseline-s0")  # makes room
    launched.wait_until(lambda: endings(the_run(launched, "baseline-s1")) == ["cancelled", "finished"], "a dropped one goes on")


def test_another_file_of_the_same_name_is_refused(cluster: Cluster, user_path: Path) -> None:
    launched = Launched(cluster, user_path, seeds=1)
    launched.run()
    (launched.code / "demo.yaml").rename(launched.code / "other.yaml")
    said = launched.run("--sweep", "other.yaml", code=2)
    assert "'demo' is the sweep of demo.yaml" in said and "--renamed" in said, said
    launched.run("--sweep", "other.yaml", "--renamed")
    all_over(launched)
    assert "nothing left" in launched.run("--sweep", "other.yaml")
    assert len(launched.submissions()) == 1


def test_more_epochs_within_the_horizon_extend_a_finished_run(cluster: Cluster, user_path: Path) -> None:
    text = SWEEP.replace("warmup_epochs: 0", "warmup_epochs: 0, schedule_epochs: 4")
    launched = Launched(cluster, user_path, seeds=2, text=text)
    launched.run()
    all_over(launched)
    write_sweep(launched, text.replace("epochs: 2,", "epochs: 4,"), 2)
    said = launched.run()
    assert "extend 2 runs: finished, and more epochs are asked for now" in said, said
    all_over(launched)
    assert [json.loads(path.read_text())["epochs"] for path in launched.sweep.glob("*/result.json")] == [4, 4], launched.say()
    assert {len(endings(path.parent)) for path in launched.sweep.glob("*/run.yaml")} == {2}
    assert "nothing left" in launched.run() and len(launched.submissions()) == 2


# --- an orphaned array ---


def killer(cluster: Cluster, folder: Path) -> Path:
    """A folder for PATH whose sbatch kills the launcher once the array is accepted, as long as `armed` is there."""
    wrapper, real = folder / "bin" / "sbatch", shutil.which("sbatch")
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/bash\n[[ "$*" == *--test-only* ]] && exec {real} "$@"\nanswer=$({real} "$@") || exit\n'
        f'echo "$answer" >> {folder}/sent.txt\nif rm {folder}/armed 2> /dev/null; then kill -9 $PPID; fi\necho "$answer"\n'
    )
    wrapper.chmod(0o755)
    (folder / "armed").touch()
    cluster.give_to_user(folder)
    return wrapper.parent


def test_an_array_whose_launcher_was_killed_is_found_again_and_not_sent_twice(cluster: Cluster, user_path: Path) -> None:
    launched = Launched(cluster, user_path, seeds=3)
    path = f"{killer(cluster, user_path)}:/usr/bin:/bin"
    launched.run(code=-9, env={"PATH": path})
    (orphan,) = (user_path / "sent.txt").read_text().split()
    assert launched.submissions()[0]["job_id"] is None
    said = launched.run(env={"PATH": path})
    assert f"found job {orphan} of submission 0001, whose launcher had died" in said, said
    assert launched.job == orphan
    all_over(launched)
    assert (user_path / "sent.txt").read_text().split() == [orphan], "something was sent twice"
    assert [endings(path.parent) for path in launched.sweep.glob("*/run.yaml")] == [["finished"]] * 3, launched.say()
