"""The mirror on a Slurm that tracks processes: an eviction kills wandb-core with its first SIGTERM; nothing is lost or doubled."""

import sys
from pathlib import Path

import pytest
from cluster import Cluster
from launched import Launched

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "hpc"))
from wandb_stub import Stub, serving

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(300)]

EVICTIONS = 3
ACTS = ";".join(["epochs 2 serve"] * EVICTIONS + ["epochs 2 finish"])


def test_evicted_three_times_the_server_has_every_epoch_once(cluster: Cluster, user_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: make setup")
    with serving() as stub:
        launched = Launched(cluster, user_path, 1, acts=ACTS)
        said = launched.run("train.epochs=8", env={**stub.environment(), "WANDB_MODE": "online"})
        assert f"W&B: online where {stub.url} answers" in said
        for generation in range(1, EVICTIONS + 1):
            launched.wait_until(lambda: list(launched.sweep.glob(f"*/serving-{generation}-0")), f"attempt {generation} serves")  # noqa: B023
            launched.wait_until(lambda: _is_open(stub, generation), f"attempt {generation} is mirrored")  # noqa: B023
            evict(launched)
        launched.wait_until(lambda: launched.finished() == 1 and not launched.listed(), "the run finishes", 120.0)
        (run,) = stub.runs.values()
        mirror = (launched.sweep / "logs" / "mirror.txt").read_text()
        assert run.steps == list(range(1, 9)), f"{run.steps}\n{mirror}"
        assert (run.preempting, run.exits) == (EVICTIONS, [1] * EVICTIONS + [0]), mirror
        died = mirror.count("wandb-core is dead") + mirror.count("trying with a new wandb-core")
        assert died >= EVICTIONS, f"wandb-core was not killed by Slurm: the test shows nothing\n{mirror}"
        assert f"{stub.url} answers" not in mirror or "WARNING run" not in mirror, mirror


def _is_open(stub: Stub, generation: int) -> bool:
    return stub.books.requests.count("POST RunResumeStatus 200") >= 2 * generation - 1


def evict(launched: Launched) -> None:
    """Fill the node on which the task runs with a job that goes before it, until the task is back in the queue."""
    node = launched.task(0)["BatchHost"]
    launched.cluster.fill(node)
    launched.wait_until(lambda: launched.task(0)["JobState"] != "RUNNING", "the task is evicted")
