"""--debug without training: which run is meant, what is refused, what is copied. Real breakpoints are in tests/faults."""

from pathlib import Path

import pytest
from fake_sweep import FakeSweep

from hpc import debug
from hpc.sweep import PlannedRun
from seresnet.checkpoint_files import Header, digest_of, metadata
from seresnet.config import run_id
from seresnet.errors import ConfigError
from seresnet.run_folder import CheckpointName, RunFolder


def planned(sweep: FakeSweep) -> tuple[PlannedRun, ...]:
    return tuple(
        PlannedRun(config=config, run_id=identity, slug=sweep.plan.runs[identity].slug, arms=sweep.plan.runs[identity].arms)
        for identity, config in sweep.configs.items()
    )


def test_a_run_is_found_by_id_beginning_slug_folder_and_arm(tmp_path: Path) -> None:
    runs = planned(FakeSweep(tmp_path))
    wanted = next(run for run in runs if run.slug == "se-seed0")
    for name in (wanted.run_id, wanted.run_id[:6], "se-seed0", f"se-seed0-{wanted.run_id}", "se"):
        assert debug.find(runs, name) == wanted, name
    with pytest.raises(ConfigError, match=r"--debug nix: nix is no run of this sweep\. Runs: baseline-seed0, baseline-seed1, se-seed0"):
        debug.find(runs, "nix")


def test_several_ranks_are_refused_with_a_command_that_can_be_run_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "s.yaml"
    file.write_text(
        "name: s\nbase.train: {device: cpu, amp: off, ranks: 2, micro_batch_size: 512}\nbase.data.name: digits\narms: {a: {}}\n"
    )
    from hpc.launcher import Request

    with pytest.raises(ConfigError) as caught:
        debug.debug_run(Request(sweep_file=file, overrides=("site=local",)), "a")
    text = str(caught.value)
    folder = Path(text.rpartition("--run-dir ")[2])
    assert "add train.ranks=1; or start its ranks without a debugger: torchrun --nproc-per-node 2 -m seresnet.train" in text
    assert folder.parent == Path("runs/s/trials") and (folder / "run.yaml").exists(), text


def checkpoint(folder: RunFolder, step: int) -> CheckpointName:
    import json

    text = json.dumps({"__metadata__": metadata(Header(generation=3, step=step), {})}).encode()
    payload = len(text).to_bytes(8, "little") + text
    name = CheckpointName(generation=3, step=step, digest=digest_of(payload))
    (folder.checkpoints / str(name)).write_bytes(payload)
    return name


def test_an_unfinished_run_is_debugged_from_a_copy_of_its_newest_trusted_checkpoint(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path)
    run, own = next(run for run in planned(sweep) if run.slug == "se-seed0"), sweep.of("se", 0)
    checkpoint(own, 10)
    name = checkpoint(own, 20)
    (own.checkpoints / str(CheckpointName(generation=3, step=30, digest="0" * 16))).write_bytes(b"torn")
    before = {path: path.stat().st_mtime_ns for path in own.path.rglob("*")}
    scratch = RunFolder(path=sweep.folder.trials / "debug-x")
    assert debug._prepare(scratch, run, own) == str(name)
    assert [path.name for path in scratch.checkpoints.iterdir()] == [str(name)]
    assert before == {path: path.stat().st_mtime_ns for path in own.path.rglob("*")}


def test_a_finished_run_and_one_that_never_began_are_debugged_from_the_start(tmp_path: Path) -> None:
    sweep = FakeSweep(tmp_path)
    sweep.finish("se", 0)
    checkpoint(sweep.of("se", 0), 20)
    run = next(run for run in planned(sweep) if run.slug == "se-seed0")
    scratch = RunFolder(path=sweep.folder.trials / "debug-x")
    assert debug._prepare(scratch, run, sweep.of("se", 0)) is None
    assert debug._prepare(scratch, run, None) is None and run.run_id == run_id(run.config)
