"""One private Slurm cluster for the whole session; see cluster.py.

HPC_SLURM_CLUSTER=DIR uses one that `cluster.py up DIR` started and leaves it running, which saves 10 s a try.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, ClusterError, load, up, why_not


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[Cluster]:
    if given := os.environ.get("HPC_SLURM_CLUSTER"):
        yield load(Path(given))
        return
    if reason := why_not():
        pytest.skip(f"no private Slurm cluster: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="hpc-slurm-"))
    started = up(folder)
    try:
        yield started
    finally:
        started.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def checked_cluster(session_cluster: Cluster) -> Cluster:
    try:
        session_cluster.run_as_user([sys.executable, "-c", "import submitit, yaml"])
    except (ClusterError, OSError) as error:
        pytest.fail(
            f"an ordinary user cannot run {sys.executable}: {error}\n"
            "Slurm jobs run as one: make the environment from a Python that everybody can execute: PYTHON=/usr/bin/python3 make setup"
        )
    return session_cluster


@pytest.fixture
def cluster(checked_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with an empty queue; what a test leaves running is cancelled."""
    yield checked_cluster
    checked_cluster.cancel_everything()


@pytest.fixture
def user_path(cluster: Cluster, request: pytest.FixtureRequest) -> Path:
    """A folder of the ordinary user for this test."""
    folder = Path(tempfile.mkdtemp(prefix=f"{request.node.originalname[:30]}-", dir=cluster.work))
    cluster.give_to_user(folder)
    folder.chmod(0o755)
    return folder
