"""Trials that really train: a smoke test passes, names the arm that cannot, and sees a checkpoint that changed; breakpoints stop."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpc import trials
from hpc.code_snapshot import ROOT, snapshot_code
from hpc.paths import SweepFolder
from hpc.site import Site
from hpc.sweep import expand, read_sweep
from hpc.trial_task import run_trials
from seresnet.checkpoint_files import digest_of
from seresnet.run_folder import CheckpointName, RunFolder
from seresnet.signals import StopFlag

#: Starts the rank, and after its first start changes a bit of the checkpoint; with `rename` in a way that its own digest agrees again.
FLIP = """
import subprocess, sys
from pathlib import Path
from tests_faults_flip import flip
code = subprocess.run([sys.executable, "-m", "seresnet.train", "--run-dir", *sys.argv[2:]]).returncode
if code == 75:
    flip(Path(sys.argv[2]), sys.argv[1] == "rename")
sys.exit(code)
"""


def sweep_file(folder: Path, data_dir: Path, arms: str) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(
        f"""\
name: tiny
base:
  model: {{width: 4, blocks: [1, 1, 1]}}
  data: {{name: digits, dir: {data_dir}, train_images: 180, test_images: 40}}
  augment: {{flip: false, autoaugment: none}}
  optim: {{warmup_epochs: 0}}
  train: {{epochs: 5, global_batch_size: 32, device: cpu, amp: off, eval_batch_size: 16}}
arms:
{arms}"""
    )
    return path


def smoke(tmp_path: Path, data_dir: Path, arms: str, **more: object) -> tuple[int, SweepFolder, trials.TrialTask]:
    sweep = SweepFolder(tmp_path / "runs" / "tiny")
    runs = expand(read_sweep(sweep_file(tmp_path, data_dir, arms), ()))
    told = trials.prepare(sweep, trials.choose(runs, "smoke"), Site(name="x"), code=snapshot_code(sweep.codes))
    return run_trials(sweep, told.name, stop=StopFlag(), **more), sweep, told  # type: ignore[arg-type]


def test_a_smoke_test_passes_and_names_the_arm_that_cannot_train(
    digits_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = "  two: {train.ranks: 2, train.micro_batch_size: 16}\n  bad: {data.name: images, data.path: /nowhere}\n"
    code, sweep, told = smoke(tmp_path, digits_dir, arms)
    text = capsys.readouterr().out
    assert code == 78, text
    assert "two (two-s0): passed: " in text and "bad (bad-s0): FAILED: user_error: " in text and "/nowhere" in text, text
    report = trials.read_outcomes(sweep, told.name)[told.runs[0].run_id]["report"]
    assert (report["steps"], report["ranks"], report["evaluated_images"]) == (20, 2, 40), report
    assert report["step_s"] > 0 and report["peak_memory_mb"] > 50 and report["checkpoint_bytes"] > 10_000, report
    assert {path.name for path in sweep.path.iterdir()} == {"code", "trials"}


def flip(folder: Path, rename: bool) -> None:
    """Change the last bit of a checkpoint's last tensor, which is the momentum of a weight."""
    (path,) = RunFolder(path=folder).checkpoints.glob("*.safetensors")
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    name = CheckpointName.parse(path.name)
    assert name is not None
    path.unlink()
    digest = digest_of(bytes(payload)) if rename else name.digest
    path.with_name(str(CheckpointName(generation=name.generation, step=name.step, digest=digest))).write_bytes(payload)


@pytest.mark.parametrize(
    ("how", "said"),
    [("keep", "no checkpoint can be trusted"), ("rename", "A resumed run would not have the same bits")],
)
def test_a_bit_that_changes_between_save_and_resume_fails_the_smoke_test(
    how: str, said: str, digits_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "flip.py"
    script.write_text(
        FLIP.replace("from tests_faults_flip", f"sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\nfrom test_smoke")
    )
    code, _, _ = smoke(tmp_path, digits_dir, "  a: {}\n", rank_command=(sys.executable, str(script), how, "{run_dir}"))
    text = capsys.readouterr().out
    assert code == 78 and "a (a-s0): FAILED: " in text and said in text, text


PLAIN = "import sys\nfrom hpc.launch import main\nsys.exit(main(sys.argv[1:]))\n"
BREAKING = """
import seresnet.engine as engine
step = engine.Engine.train_step
def train_step(self):
    if self.step == 3:
        breakpoint()
    step(self)
engine.Engine.train_step = train_step
"""


def start_debugging(tmp_path: Path, data_dir: Path, code: str) -> "tuple[int, subprocess.Popen[bytes]]":
    """`--debug a` on a terminal of its own; the terminal's other end, and the process."""
    file = sweep_file(tmp_path, data_dir, "  a: {}\n")
    command = [sys.executable, "-c", code, "--sweep", str(file), "site=local", "--debug", "a", "train.epochs=100000"]
    master, slave = pty.openpty()
    child = subprocess.Popen(command, cwd=tmp_path, stdin=slave, stdout=slave, stderr=slave, start_new_session=True, env=_environment())
    os.close(slave)
    return master, child


def test_a_breakpoint_stops_in_this_process(digits_dir: Path, tmp_path: Path) -> None:
    master, child = start_debugging(tmp_path, digits_dir, BREAKING + PLAIN)
    seen = read_until(master, "(Pdb)", child)
    os.write(master, b"p 'step is', self.step\n")
    seen += read_until(master, "('step is', 3)", child)
    os.write(master, b"c\n")
    seen += read_until(master, "epoch=1/", child)
    time.sleep(0.05)  # pdb within the logging of that very line: logging swallows the exception that q raises (seen)
    child.send_signal(signal.SIGINT)
    seen += read_until(master, "(Pdb)", child)  # as pdb has it: Ctrl-C leads back to its prompt
    os.write(master, b"q\n")
    seen += read_until(master, "stopped; what it wrote lies in runs/tiny/trials/debug-a-s0-", child)
    assert child.wait(timeout=60) == 130, seen
    assert {path.name for path in (tmp_path / "runs" / "tiny").iterdir()} == {"trials"}, "the run's own folder was touched"


def test_ctrl_c_ends_debugging(digits_dir: Path, tmp_path: Path) -> None:
    master, child = start_debugging(tmp_path, digits_dir, PLAIN)
    seen = read_until(master, "epoch=1/", child)
    child.send_signal(signal.SIGINT)
    seen += read_until(master, "stopped; what it wrote lies in runs/tiny/trials/debug-a-s0-", child)
    assert child.wait(timeout=60) == 130, seen


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb", "COLUMNS": "200", "PYTHONBREAKPOINT": "pdb.set_trace"}


def read_until(master: int, text: str, child: "subprocess.Popen[bytes]", limit_s: float = 120) -> str:
    """What a terminal shows until text appears."""
    seen, deadline = "", time.monotonic() + limit_s
    while text not in seen:
        assert time.monotonic() < deadline, f"no {text!r} in {seen[-3000:]}"
        if select.select([master], [], [], 0.5)[0]:
            try:
                seen += os.read(master, 65536).decode(errors="replace")
            except OSError:  # the other side is gone
                assert text in seen, f"ended without {text!r}: {seen[-3000:]}"
        else:
            assert child.poll() is None, f"ended without {text!r}: {seen[-3000:]}"
    return seen
