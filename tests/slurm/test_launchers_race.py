"""Two launchers of one sweep at the same moment on a real Slurm: each run is sent once, claimed once and finished once."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster
from launched import SWEEP, Launched
from scenes import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(300)]

ROUNDS = 20


def counting_sbatch(cluster: Cluster, folder: Path) -> Path:
    """A folder for PATH in which sbatch writes down each array that was accepted."""
    wrapper, real = folder / "bin" / "sbatch", shutil.which("sbatch")
    wrapper.parent.mkdir()
    # One short append: no two of them mix.
    wrapper.write_text(
        f'#!/bin/bash\n[[ "$*" == *--test-only* ]] && exec {real} "$@"\nanswer=$({real} "$@") || exit\n'
        f'echo "$answer" >> {folder}/sent.txt\necho "$answer"\n'
    )
    wrapper.chmod(0o755)
    cluster.give_to_user(folder)
    return wrapper.parent


def launch_twice(launched: Launched, name: str, path: Path, seeds: int) -> list[str]:
    """Two launchers of one sweep let go together; what each said."""
    command = ["bash", "-c", f'until [ -e go-{name}-{seeds} ]; do sleep 0.01; done; exec "$@"', "-"]
    command += [sys.executable, "-m", "hpc.launch", "--sweep", f"{name}.yaml", f"seeds={seeds}"]
    env = {"PATH": f"{path}:/usr/bin:/bin", "WANDB_MODE": "disabled"}
    pair = [launched.cluster.popen_as_user(command, cwd=launched.code, env=env) for _ in range(2)]
    (launched.code / f"go-{name}-{seeds}").touch()
    said = []
    for process in pair:
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert process.returncode == 0, f"exit {process.returncode}\n{out}\n{err}"
        said.append(out)
    return said


def test_twenty_times_two_launchers_at_once_train_each_run_once(cluster: Cluster, user_path: Path) -> None:
    """Ten sweeps that are new, and each once more with a second seed while the first may still be queued."""
    launched = Launched(cluster, user_path, seeds=1)
    path = counting_sbatch(cluster, user_path)
    names = [f"race{index}" for index in range(ROUNDS // 2)]
    for name in names:
        (launched.code / f"{name}.yaml").write_text(SWEEP.format(seeds=1).replace("name: demo", f"name: {name}"))
        for seeds in (1, 2):
            said = launch_twice(launched, name, path, seeds)
            assert ["sent 1 run as job" in text for text in said].count(True) == 1, "\n".join(said)

    runs = launched.code / "runs"
    wait_for(lambda: "" if launched.listed() else "over", "all arrays are over", lambda: cluster.command("squeue"), timeout_s=90)
    sent = (user_path / "sent.txt").read_text().split()
    assert len(sent) == len(set(sent)) == ROUNDS, f"arrays accepted: {sent}"
    for name in names:
        plan = json.loads((runs / name / "plan.json").read_text())
        assert sorted(run for pack in plan["tasks"].values() for run in pack) == sorted(plan["runs"]), f"{name}: queued twice"
        for entry in plan["runs"].values():
            folder = runs / name / entry["folder"]
            claims = [found.name for found in folder.glob("attempts/*.json") if found.stem.isdigit()]
            assert len(claims) == 1 and (folder / "result.json").exists(), f"{folder}: {claims}\n{(folder / 'log.txt').read_text()}"
