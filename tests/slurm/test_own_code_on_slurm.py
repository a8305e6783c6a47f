"""examples/own_model on a real Slurm with real training: somebody's network, data set and loss, evicted once, and the bits of a quiet run.

Nothing under hpc/ or seresnet/ is edited for it. The quiet run is the same config on this machine, with data that it makes itself.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster
from launched import Launched
from scenes import REPO

from hpc import code_snapshot
from seresnet import journal
from seresnet.run_folder import RunFolder, TrainResult

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(300)]

EXAMPLE = REPO / "examples" / "own_model"
#: Five seconds of training and more on a free core: an eviction takes two.
SMALL = ("seeds=1", "train.epochs=40", "train.checkpoint_every_s=0.5", "data.args.train=1000", "data.args.test=100")
SITE = ("site.extends=slurm", "site.partition=low", "site.gpu_request=none", "site.cpus_per_rank=1", "site.walltime_min=10")


class OwnCode(Launched):
    """The example in a folder of the ordinary user, one arm of it, beside the packages as they are in the repository."""

    file = "own_model/own.yaml"

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.acts, self.code = cluster, "", folder / "code-of-user"
        for name in ("hpc", "seresnet", "configs", "examples/own_model"):
            shutil.copytree(REPO / name, self.code / Path(name).name, ignore=shutil.ignore_patterns("__pycache__"))
        lines = (EXAMPLE / "own.yaml").read_text().splitlines()
        (self.code / self.file).write_text("\n".join(line for line in lines if not line.startswith(("  cross-entropy:", "  deeper:"))))
        cluster.give_to_user(folder)

    @property
    def sweep(self) -> Path:
        return self.code / "runs" / "own-model"

    def start_quiet(self) -> "subprocess.Popen[str]":
        """The same run without SLURM, in folders of its own."""
        command = [
            sys.executable,
            "-m",
            "hpc.launch",
            "--local",
            "--sweep",
            self.file,
            "--runs-dir",
            "quiet",
            *SMALL,
            "data.dir=quiet-data",
        ]
        return self.cluster.popen_as_user(command, cwd=self.code, env={"WANDB_MODE": "disabled"})

    def run_folder(self, runs_dir: str = "runs") -> RunFolder:
        (found,) = (self.code / runs_dir / "own-model").glob("focal-*")
        return RunFolder(path=found)


@pytest.fixture
def own(cluster: Cluster, user_path: Path) -> OwnCode:
    return OwnCode(cluster, user_path)


def test_evicted_while_it_trains_somebodys_own_code_ends_with_the_bits_of_a_quiet_run(own: OwnCode) -> None:
    quiet = own.start_quiet()
    try:
        said = own.run(*SMALL, *SITE, "data.dir=data")
        assert "own_data:shapes" in said and "called by the first run that needs it" in said, said
        folder = own.run_folder()
        own.wait_until(lambda: len(journal.read(folder)) >= 2, "the run has trained two epochs")
        own.cluster.fill(own.task(0)["NodeList"], seconds=4)
        own.wait_until(lambda: not own.listed(), "evicted, requeued, and at last out of the queue", timeout_s=150)
        out, err = quiet.communicate(timeout=150)
        assert quiet.returncode == 0, out + err
    finally:
        quiet.terminate()

    endings = [json.loads(path.read_text())["ending"] for path in sorted(folder.path.glob("attempts/*.end.json"))]
    assert (endings, len(own.submissions())) == (["preempted", "finished"], 1), own.say()
    evicted, undisturbed = TrainResult.read(folder), TrainResult.read(own.run_folder("quiet"))
    assert evicted is not None and undisturbed is not None
    assert evicted.state_digest == undisturbed.state_digest, f"other bits: {journal.read(folder)}"
    assert (evicted.data_name, evicted.data_digest, evicted.confusion) == ("five shapes", undisturbed.data_digest, undisturbed.confusion)
    code = json.loads((own.sweep / "code" / "0001" / code_snapshot.MARK).read_text())["digest"]
    assert code == code_snapshot.code_digest(REPO, user=EXAMPLE), "our packages or the example were edited for it"
    print(f"{folder.path.name}: {endings}, state_digest {evicted.state_digest[:16]} as undisturbed")
