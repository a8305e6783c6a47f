"""Real training side by side: a run that raises, is killed, hangs or exhausts memory takes no other with it, and no bit either."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ranks as ring

from hpc import code_snapshot, supervisor
from hpc.paths import Plan, PlannedFolder, Submission, Submissions, SweepFolder, WandbSettings
from seresnet import claims
from seresnet.config import run_id, to_dict
from seresnet.config_file import read_run_config
from seresnet.run_folder import RunFolder, RunRecord, TrainResult
from seresnet.signals import STOP_SIGNALS, StopFlag

COMMAND = (sys.executable, str(Path(__file__).with_name("faulty_rank.py")), "{run_dir}")
FAULTS = {"raises": "crashed", "is killed": "killed", "hangs": "hung", "exhausts memory": "out_of_memory"}


@pytest.fixture(autouse=True)
def _signals_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _pack(folder: Path, configs: dict[str, Path], at_a_time: int) -> SweepFolder:
    """A sweep whose one task trains these runs side by side."""
    sweep = SweepFolder(folder / "sweep")
    sweep.code("0001").mkdir(parents=True)
    (sweep.code("0001") / code_snapshot.MARK).write_text(json.dumps({"digest": code_snapshot.code_digest()}))
    runs = {run: PlannedFolder(slug=run, folder=run, arms=("a",)) for run in configs}
    tasks = {"0001/0": tuple(configs)}
    Plan(sweep="sweep", salt="0", arms={"a": tuple(configs)}, runs=runs, tasks=tasks, wandb=WandbSettings(mode="disabled")).write(sweep)
    entry = Submission(id="0001", created=0.0, code="0001", mode="local", tasks=("0001/0",), at_a_time=at_a_time)
    Submissions(submissions=(entry,)).write(sweep)
    for run, config in configs.items():
        run_folder = RunFolder(path=sweep.path / run)
        run_folder.create()
        RunRecord(run_id=run, slug=run, config=to_dict(read_run_config(config, []).config)).write(run_folder)
    return sweep


def _endings(folder: RunFolder) -> list[str]:
    ends = [claims.read_end(folder, claim.generation) for claim in claims.read_claims(folder)]
    return [end.ending if end else "none" for end in ends]


def test_faults_in_a_concurrent_pack_change_no_bit_of_any_run(digits_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERESNET_WATCHDOG_S", "6")
    monkeypatch.chdir(Path(supervisor.__file__).parent.parent)
    configs, alone = {}, {}
    for seed in range(5):
        folder = tmp_path / str(seed)
        folder.mkdir()
        config = ring.tiny_config(folder, digits_dir, 1, seed=seed)
        run = run_id(read_run_config(config, []).config)
        configs[run], alone[run] = config, ring.finish(config, folder / "run", 1).state_digest
    sweep = _pack(tmp_path, configs, at_a_time=5)
    for run, fault in zip(configs, FAULTS, strict=False):
        (sweep.path / run / "fault.txt").write_text(fault)

    code = supervisor.run_task(sweep, "0001/0", stop=StopFlag(), rank_command=COMMAND)
    folders = {run: RunFolder(path=sweep.path / run) for run in configs}
    logs = "\n".join(folder.log.read_text()[-1500:] for folder in folders.values())
    assert code == 0, logs
    endings = [_endings(folder) for folder in folders.values()]
    assert endings == [*([ending, "finished"] for ending in FAULTS.values()), ["finished"]], logs
    results = {run: TrainResult.read(folder) for run, folder in folders.items()}
    assert {run: result.state_digest for run, result in results.items() if result} == alone, logs
    hung = list(folders.values())[2].stacks(1, 0).read_text()
    assert "in hang" in hung, hung
