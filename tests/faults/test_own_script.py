"""examples/own_script as somebody runs it, told to stop, killed and started again: the numbers of an undisturbed run; and scripts that do
not keep to the contract.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc import ranks, supervisor
from hpc.paths import Plan, SweepFolder, WandbSettings
from hpc.single import sweep_of_one
from seresnet import claims, journal
from seresnet.run_folder import RunFolder, TrainResult
from seresnet.signals import StopFlag

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_script"
RUN = (
    "program: [python, {script}, '{{run_dir}}/run.yaml']\nprogram.args: {{lr: 0.1, pause_s: {pause}}}\ntrain: {{epochs: 6, device: cpu}}\n"
)

pytestmark = pytest.mark.usefixtures("no_slurm")


class Own:
    """One run of a script, as `sbatch sbatch/train.sh FILE` starts it."""

    def __init__(self, folder: Path, script: Path, pause: float = 0.0) -> None:
        folder.mkdir()
        (folder / "own.yaml").write_text(RUN.format(script=script, pause=pause))
        self.sweep, self.task = sweep_of_one(folder / "own.yaml", [], folder / "runs")
        plan = Plan.read(self.sweep)
        Plan(**{**vars(plan), "wandb": WandbSettings(mode="disabled")}).write(self.sweep)
        self.folder = RunFolder(path=next(self.sweep.path.glob("*/run.yaml")).parent)

    def run(self, disturb: Callable[[StopFlag], None] | None = None) -> int:
        stop = StopFlag()
        watcher = threading.Thread(target=disturb, args=(stop,), daemon=True) if disturb else None
        if watcher:
            watcher.start()
        code = supervisor.run_task(SweepFolder(self.sweep.path), self.task, stop=stop)
        if watcher:
            watcher.join(timeout=20)
        return code

    def after_epochs(self, count: int) -> None:
        limit = time.monotonic() + 30
        while len(journal.read(self.folder)) < count:
            assert time.monotonic() < limit, self.folder.log.read_text()
            time.sleep(0.01)

    def endings(self) -> list[str]:
        ends = [claims.read_end(self.folder, claim.generation) for claim in claims.read_claims(self.folder)]
        return [end.ending if end else "none" for end in ends]

    def numbers(self) -> tuple[float | None, ...]:
        result = TrainResult.read(self.folder)
        assert result is not None, self.folder.log.read_text()
        return result.last_test_top1_pct, result.last_test_loss, result.train_loss


def test_stopped_killed_and_started_again_it_has_the_numbers_of_a_quiet_run(tmp_path: Path) -> None:
    quiet, disturbed = Own(tmp_path / "quiet", EXAMPLE / "train.py"), Own(tmp_path / "disturbed", EXAMPLE / "train.py", pause=0.2)
    assert quiet.run() == 0

    def stop_it(stop: StopFlag) -> None:
        disturbed.after_epochs(2)
        stop.signal_name = "SIGTERM"

    def kill_it(stop: StopFlag) -> None:
        disturbed.after_epochs(4)
        (pid,) = [int(path.name) for path in Path("/proc").glob("[0-9]*") if str(disturbed.folder.run_yaml).encode() in _words(path)]
        os.kill(pid, signal.SIGKILL)

    assert disturbed.run(stop_it) == 75
    assert len(journal.read(disturbed.folder)) < 6, "it was not stopped but finished"
    assert disturbed.run(kill_it) == 0  # the same task tries a killed run again
    assert disturbed.endings() == ["stopped", "killed", "finished"]
    assert disturbed.numbers() == quiet.numbers()
    assert [record.epoch for record in journal.read(disturbed.folder)] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        ("", "ended by SIGTERM, which it does not handle"),
        # As torchrun does, and shells and containers with 143.
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))", "exited 1, whether its state was saved is not known"),
    ],
)
def test_a_script_that_was_told_to_stop_and_does_not_leave_with_75_has_not_crashed(tmp_path: Path, handler: str, said: str) -> None:
    script = tmp_path / "sleeps.py"
    body = "pathlib.Path(sys.argv[1]).with_name('own').mkdir()\ntime.sleep(60)\n"
    script.write_text(f"import pathlib, signal, sys, time\n{handler}\n{body}")
    own = Own(tmp_path / "own", script)

    def stop_it(stop: StopFlag) -> None:
        while not (own.folder.path / "own").exists():
            time.sleep(0.01)
        stop.signal_name = "SIGTERM"

    assert own.run(stop_it) == 75
    end = claims.read_end(own.folder, 1)
    assert end is not None and end.ending == "stopped"
    assert end.reason is not None and said in end.reason


@pytest.mark.parametrize(
    ("body", "endings", "said"),
    [
        ("sys.exit(78)", ["user_error"], "rank 0 exited 78, and said nothing"),
        ("sys.exit(0)", ["crashed"] * 3, "every rank exited 0, and there is no result.json"),
        ("raise ValueError('no such colour')", ["crashed"] * 3, "ValueError: no such colour"),
        ("print('x', file=open(sys.argv[1].replace('run.yaml', 'result.json'), 'w'))", ["crashed", "user_error"], "result.json"),
        ("sys.exit(77)", ["crashed"] * 3, "exited 77"),  # of ours it would mean that somebody else has the run
        ("os.kill(os.getpid(), 15)", ["crashed"] * 3, "was ended by SIGTERM"),
    ],
)
def test_a_script_that_fails_is_told_by_its_last_line_and_given_up(tmp_path: Path, body: str, endings: list[str], said: str) -> None:
    script = tmp_path / "fails.py"
    script.write_text(f"import os, sys\n{body}\n")
    own = Own(tmp_path / "own", script)
    assert own.run() not in (0, 75)
    end = claims.read_end(own.folder, 1)
    assert (own.endings(), end is not None and said in str(end.reason)) == (endings, True), end


def test_a_relative_script_is_found_beside_the_file_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside.py").write_text(
        "import json, os, pathlib, sys\n"
        "assert os.environ['SERESNET_INIT_METHOD'].startswith('file://'), 'also of one rank'\n"
        "pathlib.Path(sys.argv[1]).with_name('result.json').write_text(json.dumps({'epochs': 6, 'last_test_top1_pct': 50.0}))\n"
    )
    (tmp_path / "own.yaml").write_text(RUN.format(script="beside.py", pause=0))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("SERESNET_CODE_ROOT", "")  # so that it is put back
    assert supervisor.main(["../own.yaml"]) == 0


def test_two_ranks_get_their_numbers_and_an_address_and_one_may_stay_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "PARTING_LIMIT_S", 0.2)
    script = tmp_path / "ranks.py"
    script.write_text(
        "import json, os, pathlib, sys, time\n"
        "names = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE')\n"
        "run = pathlib.Path(sys.argv[1]).parent\n"
        "assert os.environ['SERESNET_INIT_METHOD'].startswith('file://')\n"
        "import torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"  # by env://, as Lightning and accelerate do
        "both = torch.ones(1); dist.all_reduce(both); assert both.item() == 2\n"
        "(run / f'rank-{os.environ[\"RANK\"]}').write_text(' '.join(os.environ[name] for name in names))\n"
        "if os.environ['RANK'] == '0':\n"
        "    while not (run / 'rank-1').exists(): time.sleep(0.01)\n"
        "    time.sleep(0.8)\n"  # the other one has left
        "    (run / 'result.json').write_text(json.dumps({'epochs': 6, 'last_test_top1_pct': 50.0}))\n"
    )
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "own.yaml").write_text(RUN.format(script=script, pause=0).replace("device: cpu", "device: cpu, ranks: 2"))
    sweep, task = sweep_of_one(folder / "own.yaml", [], folder / "runs")
    assert supervisor.run_task(sweep, task, stop=StopFlag(), mirror_command=("true",)) == 0
    (run,) = [path.parent for path in sweep.path.glob("*/run.yaml")]
    assert [(run / f"rank-{rank}").read_text() for rank in (0, 1)] == ["0 0 2 2", "1 1 2 2"]


def test_the_example_imports_nothing_of_ours() -> None:
    source = (EXAMPLE / "train.py").read_text()
    assert "import hpc" not in source and "import seresnet" not in source and "from hpc" not in source and "from seresnet" not in source


def _words(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""
