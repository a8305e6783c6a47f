"""Many tiny runs on a cluster with a small MaxArraySize: cut into legal arrays, nothing lost, every run finished exactly once."""

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, ClusterError, up, why_not
from launched import Launched

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def sizes(request: pytest.FixtureRequest) -> tuple[int, int]:
    """(runs, MaxArraySize): the highest legal index is one less."""
    return (500, 101) if request.config.getoption("--nightly", default=False) else (120, 26)


@pytest.fixture(scope="module")
def small_arrays(sizes: tuple[int, int]) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(f"no private Slurm cluster: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="hpc-scale-"))
    started = up(folder, max_array_size=sizes[1])
    try:
        yield started
    finally:
        started.stop()
        shutil.rmtree(folder)


def count_sbatch(cluster: Cluster, folder: Path) -> Path:
    """A folder for PATH in which sbatch writes down each call before the real one answers it."""
    real = shutil.which("sbatch")
    wrapper = folder / "bin" / "sbatch"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/bash\necho "$*" >> {folder}/calls.txt\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    cluster.give_to_user(folder)
    return wrapper.parent


def endings(run: Path) -> list[str]:
    return [json.loads(path.read_text())["ending"] for path in sorted(run.glob("attempts/*.end.json"))]


def test_many_runs_at_a_small_max_array_size_all_finish_once(small_arrays: Cluster, sizes: tuple[int, int]) -> None:
    runs, most = sizes
    cluster, folder = small_arrays, Path(tempfile.mkdtemp(prefix="scale-", dir=small_arrays.work))
    folder.chmod(0o755)
    path = count_sbatch(cluster, folder)
    launched = Launched(cluster, folder, seeds=runs)
    said = launched.run(env={"PATH": f"{path}:/usr/bin:/bin"})
    planned = [most] * (runs // most) + ([runs % most] if runs % most else [])

    calls = [line for line in (folder / "calls.txt").read_text().splitlines() if "--test-only" not in line]
    assert len(calls) == len(planned), f"{len(calls)} sbatch calls, planned were {len(planned)}\n{said}"
    assert [len(entry["tasks"]) for entry in launched.submissions()] == planned
    scripts = [(launched.sweep / "logs" / f"{entry['job_id']}_submission.sh").read_text() for entry in launched.submissions()]
    highest = [int(re.findall(r"--array=0-(\d+)", text)[0]) for text in scripts]
    assert highest == [count - 1 for count in planned], "the highest index that is legal is MaxArraySize - 1"

    launched.wait_until(lambda: not launched.listed(), "all arrays are over", timeout_s=runs * 6.0)
    ends = {run.parent.name: endings(run.parent) for run in sorted(launched.sweep.glob("*/run.yaml"))}
    assert len(ends) == runs == launched.finished(), f"{launched.finished()} of {runs} runs have a result\n{launched.say()}"
    wrong = {name: endings for name, endings in ends.items() if endings != ["finished"]}
    assert not wrong, f"not finished exactly once: {wrong}\n{launched.say()}"
    assert "nothing" in launched.run().lower() and len(launched.submissions()) == len(planned), "something was sent again"
    print(f"{runs} runs, MaxArraySize {most}: arrays of {planned}, {len(calls)} sbatch calls, all finished once")


def test_slurm_itself_refuses_one_more_than_the_largest_array(small_arrays: Cluster, sizes: tuple[int, int]) -> None:
    most = sizes[1]
    args = ["sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true"]
    legal = small_arrays.run_as_user([*args, f"--array=0-{most - 1}"]).stdout.strip()
    small_arrays.command("scancel", legal)
    with pytest.raises(ClusterError, match="Invalid job array specification"):
        small_arrays.run_as_user([*args, f"--array=0-{most}"])
