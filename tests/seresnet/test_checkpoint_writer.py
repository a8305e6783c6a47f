"""The writer and the reader of states: what is on disk when, and what is told to whom."""

import errno
import hashlib
import json
import logging
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors
import torch

from seresnet import attempts, checkpoint_files
from seresnet.attempts import Claim, Owner
from seresnet.checkpoint_files import Header
from seresnet.checkpoint_writer import CheckpointWriter, decode, encode, recover, write_checkpoint
from seresnet.durable import Files
from seresnet.errors import CheckpointError
from seresnet.run_folder import CheckpointName, RunFolder
from seresnet.state import TrainState, state_digest

LIMIT_S = 20


class GatedFiles(Files):
    """The disk, with a gate before each rename and errors on demand."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self.errors: list[int] = []  # errno of the next syncs of checkpoints; 0 = none
        self.calls: list[str] = []

    def sync(self, file: object) -> None:
        if Path(file.name).parent.name == "ckpt" and self.errors and (number := self.errors.pop(0)):
            raise OSError(number, "injected")
        self.calls.append("sync")
        super().sync(file)

    def rename(self, source: Path, target: Path) -> None:
        self.waiting.set()
        assert self.gate.wait(LIMIT_S)
        self.calls.append("rename")
        super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        self.calls.append("sync_folder")
        super().sync_folder(folder)

    def unlink(self, path: Path) -> None:
        self.calls.append("unlink" if path.suffix == ".safetensors" else "unlink temp")
        super().unlink(path)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(path=tmp_path / "run")
    folder.create()
    return folder


@pytest.fixture
def files() -> GatedFiles:
    return GatedFiles()


@pytest.fixture
def writer(folder: RunFolder, files: GatedFiles) -> Iterator[CheckpointWriter]:
    writer = CheckpointWriter(folder, 1, files=files)
    yield writer
    files.gate.set()
    writer.close(LIMIT_S)


def state(step: int, **tensors: torch.Tensor) -> TrainState:
    generator = torch.Generator().manual_seed(step)
    values = {"model/w": torch.randn(8, 3, generator=generator), "model/n": torch.tensor(step), "momentum/w": torch.zeros(8, 3)}
    return TrainState(tensors={**values, **tensors}, scalars={"step": step, "sums": [0.5, step], "best": None})


def steps_on_disk(folder: RunFolder) -> list[int]:
    return [name.step for name in checkpoint_files.list_checkpoints(folder)]


def block(writer: CheckpointWriter, files: GatedFiles, step: int) -> None:
    """Let the writer hang in the middle of a save."""
    files.waiting.clear()
    files.gate.clear()
    writer.save(state(step))
    assert files.waiting.wait(LIMIT_S)


def test_a_state_survives_the_file_bit_for_bit() -> None:
    extra = {
        "ema/bf16": torch.randn(5).bfloat16(),
        "zero-dim": torch.tensor(-0.0),
        "empty": torch.empty(0, 4),
        "transposed": torch.arange(6.0).reshape(2, 3).t(),
        "channels_last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "mask": torch.tensor([True, False]),
    }
    before = state(3, **extra)
    after = decode(encode(before, Header(generation=1, step=3)))
    assert after.scalars == before.scalars
    assert all(torch.equal(after.tensors[name], tensor) for name, tensor in before.tensors.items())
    assert state_digest(after) == state_digest(before)


def test_the_file_is_plain_safetensors_with_one_canonical_metadata_entry(folder: RunFolder) -> None:
    name = write_checkpoint(folder, state(3), Header(generation=2, step=3, best=True))
    path = folder.checkpoints / str(name)
    assert name.digest == hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    with safetensors.safe_open(path, "pt") as file:
        text = file.metadata()["seresnet"]
        assert list(file.metadata()) == ["seresnet"]
        assert torch.equal(file.get_tensor("model/w"), state(3).tensors["model/w"])
    entry = json.loads(text)
    assert text == json.dumps(entry, sort_keys=True, separators=(",", ":"))
    assert (entry["schema"], entry["scalars"]) == (1, {"step": 3, "sums": [0.5, 3], "best": None})
    assert (entry["header"]["generation"], entry["header"]["best"], entry["header"]["final"]) == (2, True, False)


def test_equal_states_make_equal_files() -> None:
    header = Header(generation=1, step=5)
    assert len({encode(state(5), header) for _ in range(20)}) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_state_that_is_not_finite_is_refused_by_name(folder: RunFolder, value: float) -> None:
    with pytest.raises(CheckpointError, match="momentum/z is not finite"):
        write_checkpoint(folder, state(3, **{"momentum/z": torch.tensor([0, value])}), Header(generation=1, step=3))
    assert steps_on_disk(folder) == []


def test_durable_is_said_after_file_rename_and_folder_in_this_order(writer: CheckpointWriter, files: GatedFiles) -> None:
    block(writer, files, 1)
    assert writer.durable_step is None and files.calls == ["sync"]
    files.gate.set()
    assert writer.wait(LIMIT_S) and writer.durable_step == 1
    assert files.calls[:3] == ["sync", "rename", "sync_folder"]


def test_nothing_older_is_deleted_before_the_new_file_is_durable(writer: CheckpointWriter, files: GatedFiles, folder: RunFolder) -> None:
    for step in range(1, 6):
        writer.save(state(step))
        assert writer.wait(LIMIT_S)
    writer.close(LIMIT_S)
    commit = ["sync", "rename", "sync_folder"]
    assert files.calls == commit * 4 + ["unlink"] + commit + ["unlink"], files.calls
    assert steps_on_disk(folder) == [3, 4, 5]


def test_a_waiting_periodic_save_gives_way_to_a_newer_one(writer: CheckpointWriter, files: GatedFiles, folder: RunFolder) -> None:
    block(writer, files, 1)
    writer.save(state(2))
    writer.save(state(3))
    files.gate.set()
    assert writer.close(LIMIT_S) and steps_on_disk(folder) == [1, 3]


@pytest.mark.parametrize("flag", ["best", "final", "stop", "epoch_boundary"])
def test_a_save_with_a_flag_is_never_dropped(writer: CheckpointWriter, files: GatedFiles, folder: RunFolder, flag: str) -> None:
    block(writer, files, 1)
    writer.save(state(2), **{flag: True})
    later = threading.Thread(target=writer.save, args=(state(3),))
    later.start()
    later.join(0.1)
    assert later.is_alive(), "the queue holds one; the next save waits for its place"
    files.gate.set()
    later.join(LIMIT_S)
    assert writer.close(LIMIT_S) and steps_on_disk(folder) == [1, 2, 3]


def test_at_most_three_states_are_alive_and_none_once_all_is_written(writer: CheckpointWriter, files: GatedFiles) -> None:
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()

    def save(step: int, **flags: bool) -> None:
        mine = state(step)
        alive.add(mine.tensors["momentum/w"])
        writer.save(mine, **flags)

    block(writer, files, 1)
    for step in range(2, 20):
        save(step)
        assert len(alive) == 1, "one waits; the one in work was made elsewhere"
    save(20, best=True)
    caller = threading.Thread(target=save, args=(21,))
    caller.start()
    caller.join(0.1)
    assert caller.is_alive() and len(alive) == 2, "who has made a third state stands in save() until there is a place for it"
    files.gate.set()
    caller.join(LIMIT_S)
    assert writer.wait(LIMIT_S) and len(alive) == 0


def test_wait_gives_up_at_its_limit(writer: CheckpointWriter, files: GatedFiles) -> None:
    block(writer, files, 1)
    assert writer.wait(0.05) is False


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
def test_a_failed_save_is_told_and_leaves_the_previous_checkpoint(
    writer: CheckpointWriter, files: GatedFiles, folder: RunFolder, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    writer.save(state(1))
    assert writer.wait(LIMIT_S)
    files.errors = [number]
    writer.save(state(2), stop=True)
    assert writer.wait(LIMIT_S) is False
    assert isinstance(writer.last_error, OSError) and writer.last_error.errno == number
    assert writer.durable_step == 1 and sorted(path.name[:15] for path in folder.checkpoints.iterdir()) == ["g0001-s00000000"]
    assert [record.levelno for record in caplog.records if "step=2" in record.message] == [logging.ERROR]


def test_training_goes_on_after_a_failed_save(writer: CheckpointWriter, files: GatedFiles, folder: RunFolder) -> None:
    files.errors = [errno.EIO]
    writer.save(state(1))
    assert writer.wait(LIMIT_S) is False
    writer.save(state(2))
    assert writer.wait(LIMIT_S) and writer.last_error is None and steps_on_disk(folder) == [2]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_costs_own_old_files_and_not_the_save(
    writer: CheckpointWriter, files: GatedFiles, folder: RunFolder, number: int
) -> None:
    for step in (1, 2, 3):
        writer.save(state(step))
        assert writer.wait(LIMIT_S)
    files.errors = [number]
    writer.save(state(4))
    assert writer.close(LIMIT_S) and steps_on_disk(folder) == [3, 4]


def test_a_disk_that_stays_full_keeps_the_previous_checkpoint(writer: CheckpointWriter, files: GatedFiles, folder: RunFolder) -> None:
    for step in (1, 2, 3):
        writer.save(state(step))
        assert writer.wait(LIMIT_S)
    files.errors = [errno.ENOSPC, errno.ENOSPC]
    writer.save(state(4), final=True)
    assert writer.wait(LIMIT_S) is False and writer.durable_step == 3 and steps_on_disk(folder) == [3]
    writer.save(state(5))
    assert writer.wait(LIMIT_S) and writer.durable_step == 5


def test_a_state_that_is_not_finite_does_not_end_the_writer(writer: CheckpointWriter, folder: RunFolder) -> None:
    writer.save(state(1, bad=torch.tensor(float("nan"))), final=True)
    assert writer.wait(LIMIT_S) is False and isinstance(writer.last_error, CheckpointError)
    writer.save(state(2))
    assert writer.wait(LIMIT_S) and steps_on_disk(folder) == [2]


def test_a_fenced_writer_saves_no_more(writer: CheckpointWriter, folder: RunFolder) -> None:
    writer.save(state(1))
    assert writer.wait(LIMIT_S)
    attempts.publish_claim(folder, Claim(generation=2, owner=Owner(host="h", pid=1), base=None))
    writer.save(state(2), stop=True)
    assert writer.wait(LIMIT_S) is False and "generation 2 owns" in str(writer.last_error)
    assert steps_on_disk(folder) == [1]


def test_the_best_is_named_by_later_headers_and_kept_over_attempts(folder: RunFolder) -> None:
    with_best = CheckpointWriter(folder, 1)
    with_best.save(state(1), best=True)
    with_best.save(state(2), stop=True)
    assert with_best.close(LIMIT_S)
    found = recover(folder, None)
    assert found is not None and found[1].step == 2
    best = checkpoint_files.list_checkpoints(folder)[0]
    later = CheckpointWriter(folder, 2, resumed_from=found[1])
    assert later.durable_step == 2
    for step in range(3, 9):
        later.save(state(step), epoch_boundary=True)
    assert later.close(LIMIT_S)
    assert steps_on_disk(folder) == [1, 6, 7, 8]
    last = checkpoint_files.list_checkpoints(folder)[-1]
    assert checkpoint_files.read_metadata((folder.checkpoints / str(last)).read_bytes())[0].best_so_far == str(best)


def test_a_new_writer_clears_away_what_a_killed_one_left(folder: RunFolder) -> None:
    temp = folder.checkpoints / f".{CheckpointName(generation=1, step=9, digest='0' * 16)}.00ff.tmp"
    temp.write_bytes(b"half a checkpoint")
    assert CheckpointWriter(folder, 2).close(LIMIT_S)
    assert not temp.exists()


def test_recover_takes_the_base_that_the_claim_names(folder: RunFolder) -> None:
    boundary = write_checkpoint(folder, state(5), Header(generation=1, step=5, epoch_boundary=True))
    write_checkpoint(folder, state(7), Header(generation=1, step=7))
    attempts.publish_claim(folder, Claim(generation=2, owner=Owner(host="h", pid=1), base=str(boundary)))
    found = recover(folder, str(boundary))
    assert found is not None and found[1] == boundary and state_digest(found[0]) == state_digest(state(5))


def test_recover_takes_own_saves_before_the_base(folder: RunFolder) -> None:
    base = write_checkpoint(folder, state(5), Header(generation=1, step=5))
    attempts.publish_claim(folder, Claim(generation=2, owner=Owner(host="h", pid=1), base=str(base)))
    own = write_checkpoint(folder, state(6), Header(generation=2, step=6))
    found = recover(folder, str(base))
    assert found is not None and found[1] == own


def test_recover_of_a_new_run_is_none(folder: RunFolder) -> None:
    attempts.publish_claim(folder, Claim(generation=1, owner=Owner(host="h", pid=1), base=None))
    assert recover(folder, None) is None
