"""docs/cluster.md, typed in as it stands: on the private Slurm, as the ordinary user, in the page's order, with real training.

A command of the page that is neither typed here nor listed with a reason fails the test. What is replaced stands in REPLACED and in
`prepared`; sbatch/setup.sh is run with a stand-in for tools/setup.sh, which fetches 3 GB and is what CI's `make setup` runs.
"""

import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cluster import NODES, Cluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(600)]

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs/cluster.md").read_text()
LAUNCH = "python -m hpc.launch --sweep configs/ablation.yaml"
STATUS = 'python -m hpc.status "$SCRATCH/runs/ablation"'

#: Typed nowhere here, and why.
NOT_HERE = {
    "make launcher": "needs a package index; tests/test_repository.py makes it in RING=full, prepared() puts a stand-in there",
    'python -m hpc.move "$SCRATCH/runs/ablation" "$ARCHIVE/ablation"': "the table is looked at in the end; test_moved_on_slurm.py moves",
    'IMAGE=/path/image.sif OVERLAY="$SCRATCH/env/overlay.ext3" sbatch --account=ME sbatch/setup.sh': "see the test with the overlay below",
}
#: What stands on the page -> what is typed.
REPLACED = {
    r"\bME\b": "lab",
    r"git clone URL": "cp -r {source}",  # the working tree, not the last commit
    r"prepare cifar10": "prepare digits",
    r" site\.constraint='a100\|h200'": "",  # nodes of the private cluster have no features
    r"^(python .* --watch)$": r"timeout --preserve-status -s INT 4 {0}",  # else until all is over: Ctrl-C
    r"^read -rs WANDB_API_KEY": "read -rs WANDB_API_KEY <<< 0123456789012345678901234567890123456789",
}
SITE = """\
extends: slurm
account_required: true
gpu_request: none
partition: low
cpus_per_rank: 1
signal_delay_s: 30
data_dir: $SCRATCH/data
runs_dir: $SCRATCH/runs
cache_dir: $SCRATCH/cache
"""
SWEEP = """\
name: ablation
base.model: {width: 8, blocks: [1, 1, 1]}
base.data: {name: digits, train_images: 256, val_images: 100, test_images: 200}
base.augment: {crop_padding: 2, flip: false, autoaugment: none, mix_prob: 0}
base.optim: {warmup_epochs: 0}
base.train: {epochs: 2, global_batch_size: 64, device: cpu, amp: off, channels_last: false}
arms:
  se: {model.attention: se}
seeds: 2
"""
#: In place of tools/setup.sh: an environment that has this test's packages.
MAKES_VENV = """\
[ "$1" = full ] && mkdir -p "$VENV/bin" && {{ echo '#!/bin/bash'; echo 'exec {python} "$@"'; }} > "$VENV/bin/python"
chmod +x "$VENV/bin/python"
touch "$HOME/written" 2> /dev/null && rm "$HOME/written" || echo "setup: HOME is read-only"
"""


@dataclass(kw_only=True)
class Step:
    """How a command of the page is typed, and what it must do. keeps: it changes the shell for those that follow."""

    says: tuple[str, ...] = ()
    code: int = 0
    keeps: bool = False
    before: Callable[["Reader"], None] | None = None
    after: Callable[["Reader"], None] | None = None
    env: Mapping[str, str] = field(default_factory=dict)


def commands(text: str) -> list[str]:
    """Every line of every ```bash block but comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip() and not line.startswith("#")]


class Reader:
    """Somebody with an account and the page, on a login node."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder, self.home, self.scratch = cluster, folder, folder / "home", folder / "scratch"
        self.run = "se-s0"
        self.others: list[str] = []  # jobs of other users, so to speak
        self.kept: list[str] = []
        prepared(folder)
        cluster.give_to_user(folder)

    @property
    def checkout(self) -> Path:
        return self.home / "hpc-seresnet"

    @property
    def sweep(self) -> Path:
        return self.scratch / "runs" / "ablation"

    def type(self, command: str, step: Step) -> str:
        """Run one line of the page; fails with all it said."""
        typed = command.replace("RUN", self.run)
        for pattern, new in REPLACED.items():
            typed = re.sub(pattern, lambda found, new=new: new.format(found[0], source=self.folder / "source"), typed)  # type: ignore[misc]
        lines = ["cd ~", *self.kept, typed]
        env = {"HOME": str(self.home), "SCRATCH": str(self.scratch), "COLUMNS": "200", "WANDB_MODE": "offline", **step.env}
        done = self.cluster.run_as_user(["bash", "-ec", "\n".join(lines)], cwd=self.folder, env=env, check=False, timeout_s=240)
        said = str(done.stdout) + str(done.stderr)
        assert done.returncode == step.code, f"{typed}\nexit {done.returncode}, not {step.code}\n{said[-4000:]}\n{self.logs()}"
        assert [word for word in step.says if word not in said] == [], f"{typed}\n{said[-4000:]}"
        self.kept += [typed] if step.keeps else []
        return said

    def wait_until_idle(self) -> None:
        limit = time.monotonic() + 240
        while self.cluster.command("squeue", "--noheader", "--format=%i"):
            assert time.monotonic() < limit, f"jobs are still queued\n{self.cluster.command('squeue')}\n{self.logs()}"
            time.sleep(0.3)

    def folder_of(self, run: str) -> Path:
        (folder,) = (path for path in self.sweep.glob(f"{run}-*") if "." not in path.name)
        return folder

    def endings(self, run: str) -> list[str]:
        return [json.loads(path.read_text())["ending"] for path in sorted(self.folder_of(run).glob("attempts/*.end.json"))]

    def logs(self) -> str:
        paths = [self.checkout / "setup.log", *self.sweep.glob("logs/*.out"), *self.sweep.glob("*/log.txt")]
        return "\n".join(f"== {path}\n{path.read_text()[-1500:]}" for path in paths if path.exists())


def prepared(folder: Path) -> None:
    """The working tree to clone, with a small sweep under the page's name, this cluster as nyu-torch, and environments that are links."""
    source = folder / "source"
    for name in ("hpc", "seresnet", "configs", "sbatch"):
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "configs/ablation.yaml").write_text(SWEEP)
    (source / "configs/site/nyu-torch.yaml").write_text(SITE)
    (source / "tools").mkdir()
    (source / "tools/setup.sh").write_text(MAKES_VENV.format(python=sys.executable))
    activate = source / ".venv-launcher/bin/activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f"export PATH={Path(sys.executable).parent}:$PATH\n")
    (folder / "home").mkdir()
    (folder / "scratch").mkdir()


def fails(reader: Reader) -> None:
    """As if the run had crashed in a later epoch, and the reader had mended the code."""
    reader.wait_until_idle()
    run = reader.folder_of("se-s0")
    (run / "result.json").unlink()
    end = max(run.glob("attempts/*.end.json"))
    end.write_text(json.dumps({**json.loads(end.read_text()), "ending": "crashed", "reason": "on purpose", "code": 1}))
    with open(reader.checkout / "hpc/__init__.py", "a") as file:
        file.write("# mended\n")


def went_on(reader: Reader) -> None:
    reader.wait_until_idle()
    assert reader.endings("se-s0")[-2:] == ["crashed", "finished"], reader.endings("se-s0")
    assert (reader.sweep / "code/0002").is_dir()


def trained_again(reader: Reader) -> None:
    reader.wait_until_idle()
    assert reader.endings("se-s0") == ["finished"], reader.endings("se-s0")


def fill(reader: Reader) -> None:
    """The smoke test waits, so that what follows on the page finds a queue, however slow this machine is. Timing is another test's."""
    reader.cluster.cancel_everything()
    reader.others = [reader.cluster.fill(node, seconds=600) for node in NODES]
    for job in reader.others:
        reader.cluster.wait_for_state(job, "RUNNING")


def slurm_has_looked(reader: Reader) -> None:
    """A waiting job has no reason until the scheduler has come by."""
    deadline = time.monotonic() + 30
    while "None" in reader.cluster.command("squeue", "--noheader", "--states=PENDING", "--format=%r").split():
        assert time.monotonic() < deadline, "the scheduler does not come by"
        time.sleep(0.2)


def smoke_passes(reader: Reader) -> None:
    reader.cluster.command("scancel", *reader.others)
    smoke_has_passed(reader)


def smoke_has_passed(reader: Reader) -> None:
    reader.wait_until_idle()
    outcomes = json.loads((reader.sweep / "trials/smoke-0001.end.json").read_text())
    assert [outcome["passed"] for outcome in outcomes.values()] == [True], outcomes


def table_is_there(reader: Reader) -> None:
    assert {"table.md", "runs.csv", "figures"} <= {path.name for path in reader.sweep.iterdir()}


def idle(reader: Reader) -> None:
    reader.wait_until_idle()


STEPS = {
    'cd "$HOME"': Step(keeps=True),
    "git clone URL hpc-seresnet": Step(),
    "cd hpc-seresnet": Step(keeps=True),
    "source .venv-launcher/bin/activate": Step(keeps=True),
    'VENV="$SCRATCH/env/venv" sbatch --account=ME sbatch/setup.sh': Step(after=idle),
    "mkdir -p ~/.config/hpc": Step(),
    "printf '%s\\n' 'extends: nyu-torch' 'account: ME' > ~/.config/hpc/site.yaml": Step(),
    "sed -n '/^# for/,$p' setup.log >> ~/.config/hpc/site.yaml": Step(),
    "train=$(sed -n 's/^# by hand: //p' setup.log)": Step(keeps=True),
    'python -m seresnet.prepare cifar10 --data-dir "$SCRATCH/data"': Step(says=("digest",)),
    f"{LAUNCH} --dry-run": Step(says=("account lab", "sbatch script", "nothing was sent")),
    f"{LAUNCH} --calibrate": Step(says=("as job",)),
    f"{LAUNCH} --smoke": Step(before=fill, says=("they wait for the smoke test",)),
    STATUS: Step(code=3, before=slurm_has_looked, says=("2 queued", "waits for another job, such as a smoke test, to end (Dependency)")),
    f"{STATUS} --logs RUN": Step(says=("log:",)),
    f"{STATUS} --watch": Step(code=3, says=("se-s0",)),
    f"{LAUNCH} --alter site.walltime_min=240 site.constraint='a100|h200'": Step(says=("TimeLimit=240",)),
    f"{LAUNCH} --max-gpus 8": Step(says=("2 of 2 runs are on their way",)),
    f"{LAUNCH} --hold": Step(says=("held: 2 tasks waiting",)),
    f"{LAUNCH} --release": Step(says=("released: 2 tasks waiting",)),
    f"{LAUNCH} --cancel RUN": Step(says=("cancelled 1 run: se-s0",), after=smoke_passes),
    f"{LAUNCH} --retry cancelled": Step(says=("sent 1 run",), after=idle),
    LAUNCH: Step(says=("nothing left: all 2 runs are finished",)),
    f"{LAUNCH} --retry failed --code new": Step(before=fails, says=("code/0002", "sent 1 run"), after=went_on),
    f"{LAUNCH} --rerun RUN": Step(says=("set aside",), after=trained_again),
    "read -rs WANDB_API_KEY && export WANDB_API_KEY": Step(keeps=True),
    '$train -m hpc.mirror "$SCRATCH/runs/ablation"': Step(says=("W&B: offline",)),
    'srun --account=ME --mem=4G --time=10 $train -m hpc.collect "$SCRATCH/runs/ablation"': Step(says=("table.md",), after=table_is_there),
    "python -m hpc.launch --new-site mycluster": Step(says=("wrote configs/site/mycluster.yaml",)),
}


def test_every_command_of_the_page_is_typed_here_or_listed_with_a_reason() -> None:
    found = commands(PAGE)
    assert [command for command in found if command not in STEPS and command not in NOT_HERE] == []
    assert [command for command in (*STEPS, *NOT_HERE) if command not in found] == [], "no longer on the page"
    assert "```\n" not in re.sub(r"^```bash\n.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL), "a block that is not bash"


def test_the_page_leads_from_a_clone_to_the_table(cluster: Cluster, user_path: Path) -> None:
    reader = Reader(cluster, user_path)
    for command in commands(PAGE):
        if command in NOT_HERE:
            continue
        step, started = STEPS[command], time.monotonic()
        if step.before:
            step.before(reader)
        reader.type(command, step)
        if step.after:
            step.after(reader)
        print(f"{time.monotonic() - started:5.1f} s  {command}")
    assert "2 finished" in (reader.sweep / "table.md").read_text(), "where the page leads"
    assert (reader.home / "hpc-seresnet/configs/site/mycluster.yaml").exists()
