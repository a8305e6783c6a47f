"""Two Pythons on the real Slurm: tasks in a stand-in container, with another Python than the login side's, few packages, no Slurm client.

What the job side has is written down here: submitit, its two dependencies and pyyaml. The sweep brings its own code, the stand-in rank
needs no torch.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import scenes
import submitit
from cluster import Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(300)]

STAND_IN = Path(__file__).with_name("container_stand_in.sh")
#: All that a task imports beside the standard library and the sweep's own code.
JOB_PACKAGES = ("submitit", "cloudpickle", "typing_extensions.py", "yaml")
#: In the overlay: an environment's Python, which says what it sees.
PYTHON = """\
#!/bin/bash
export PYTHONPATH=${{0%/bin/*}}/packages {more}
clients=$(scontrol --version 2>/dev/null || squeue --version 2>/dev/null || srun --version 2>/dev/null || echo none)
echo "inside: $({python} -V), clients: $clients, data: $(cat '{data}/marker' 2>&1), other: $(cat '{other}' 2>/dev/null || echo unseen)"
exec {python} "$@"
"""


def other_python() -> Path | None:
    """An interpreter of another minor release than this one's, from 3.11 on; None if this machine has none."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    wanted = [f"python3.{minor}" for minor in range(11, 16) if minor != sys.version_info.minor]
    found = [Path(path) for name in wanted if (path := shutil.which(name))] + [
        path for name in wanted for path in versions.glob(f"*/bin/{name}")
    ]
    for path in found:
        done = subprocess.run([path, "-c", "import sys; print(sys.base_prefix)"], capture_output=True, text=True)
        if done.returncode == 0 and (Path(done.stdout.strip()) / "bin" / path.name).exists():
            return Path(done.stdout.strip()) / "bin" / path.name
    return None


def make_image(folder: Path) -> tuple[str, str]:
    """An image with an interpreter of its own; its command inside, and what its environment needs. Without another minor: the system's."""
    (folder / "bin").mkdir(parents=True)
    python = other_python()
    if python is None or python.is_relative_to("/usr"):
        return str(python or Path(sys.executable).resolve()), ""
    home, name = python.parent.parent, python.name
    left_out = shutil.ignore_patterns("test", "tests", "site-packages", "__pycache__", "config-*", "idlelib", "*.a")
    shutil.copytree(home / "lib" / name, folder / "lib" / name, ignore=left_out)
    for path in (python, *home.glob(f"lib/lib{name}*.so*")):
        shutil.copy2(path, folder / path.relative_to(home))
    return f"/image/bin/{name}", "PYTHONHOME=/image LD_LIBRARY_PATH=/image/lib"


@pytest.fixture
def site(user_path: Path, cluster: Cluster) -> dict[str, object]:
    """A site whose tasks run in the container; the image and the overlay lie beside the test's folder, where no bind shows them."""
    image, overlay, data, tools = (user_path / name for name in ("image", "overlay", "data", "tools"))
    for each in (overlay / "bin", overlay / "packages", data, tools):
        each.mkdir(parents=True)
    (data / "marker").write_text("seen")
    (user_path / "other").write_text("seen")
    python, more = make_image(image)
    packages = Path(submitit.__file__).parent.parent
    for name in JOB_PACKAGES:
        copy = shutil.copytree if (packages / name).is_dir() else shutil.copy
        copy(packages / name, overlay / "packages" / name)
    text = PYTHON.format(python=python, data=data, other=user_path / "other", more=more)
    (overlay / "bin" / "python").write_text(text)
    (overlay / "bin" / "python").chmod(0o755)
    shutil.copy(STAND_IN, tools / "apptainer")
    cluster.give_to_user(user_path)
    return {
        "container": "apptainer", "image": str(image), "overlay": str(overlay), "python": "/ext3/bin/python",
        "data_dir": str(data), "setup": [f"export PATH={tools}:$PATH"],
    }  # fmt: skip


def starts(scene: scenes.Scene) -> list[str]:
    return [line for path in scene.sweep.glob("logs/*_log.out") for line in path.read_text().splitlines() if line.startswith("inside: ")]


def test_a_task_in_a_container_with_another_python_is_evicted_and_comes_back_by_the_batch_script(
    cluster: Cluster, user_path: Path, site: dict[str, object]
) -> None:
    scene = scenes.submit(cluster, user_path, "serve\nfinish", **site)
    scene.wait_until_serving()
    cluster.fill(cluster.show_job(scene.task())["NodeList"], seconds=3)
    scene.wait_until_over("COMPLETED", timeout_s=90)
    # The supervisor could not look: it has no scontrol. The batch script could.
    assert scene.endings() == ["stopped", "finished"], scene.say()
    assert "requeue=yes" in scene.say(), scene.say()
    lines = starts(scene)
    print("\n".join(lines))
    assert len(lines) == 2 and all("clients: none, data: seen" in line for line in lines), scene.say()
    if other_python():
        assert not any(f"Python {sys.version_info.major}.{sys.version_info.minor}." in line for line in lines), lines


def test_a_container_shows_the_sweep_and_the_data_and_nothing_else(cluster: Cluster, user_path: Path, site: dict[str, object]) -> None:
    scene = scenes.submit(cluster, user_path, "finish", **site)
    scene.wait_until_over("COMPLETED")
    if "not isolated" in scene.say():
        pytest.skip("no user namespaces here: the stand-in shows everything")
    assert scene.endings() == ["finished"] and all(line.endswith("data: seen, other: unseen") for line in starts(scene)), scene.say()
    again = user_path / "again"
    again.mkdir()
    cluster.give_to_user(again)
    bound = scenes.submit(cluster, again, "finish", **site, binds=[str(user_path / "other")])
    bound.wait_until_over("COMPLETED")
    assert all(line.endswith("other: seen") for line in starts(bound)), bound.say()


def test_a_cancelled_task_in_a_container_stays_cancelled(cluster: Cluster, user_path: Path, site: dict[str, object]) -> None:
    scene = scenes.submit(cluster, user_path, "serve\nfinish", **site)
    scene.wait_until_serving()
    cluster.run_as_user(["scancel", scene.task()])
    scene.wait_until_over("CANCELLED")
    assert scene.attempts() == 1 and "requeue=yes" not in scene.say(), scene.say()


def test_an_overlay_that_is_missing_on_the_node_fails_the_task_and_trains_nothing(
    cluster: Cluster, user_path: Path, site: dict[str, object]
) -> None:
    scene = scenes.submit(cluster, user_path, "finish", **{**site, "overlay": "$NO_SUCH_VARIABLE/overlay"})
    scene.wait_until_over("FAILED")
    assert scene.attempts() == 0 and "NO_SUCH_VARIABLE: is not set on this node" in scene.say(), scene.say()
