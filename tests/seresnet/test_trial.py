"""Parts of a trial that need no training: times, the guard of real runs, the check of a restored state."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from seresnet import trial
from seresnet.data import Split
from seresnet.engine import EpochSums
from seresnet.errors import CheckpointError, ConfigError
from seresnet.run_folder import RunFolder
from seresnet.state import TrainState, state_digest
from seresnet.trial import StepTimes, Trial, first_images


def test_a_step_is_the_median_after_the_warm_up() -> None:
    seconds = (9.0, 5.0, 5.0, 5.0, 5.0, *(0.1, 0.2, 0.3, 0.2, 0.1, 7.0))
    assert StepTimes(seconds=seconds).to_dict() == {"first_step_s": 9.0, "step_s": 0.2}


@pytest.mark.parametrize(("seconds", "step_s"), [((9.0,), 9.0), ((9.0, 1.0), 1.0), ((9.0, 1.0, 3.0, 2.0), 2.0)])
def test_of_few_steps_all_but_the_first_count(seconds: tuple[float, ...], step_s: float) -> None:
    assert StepTimes(seconds=seconds).to_dict()["step_s"] == step_s


def test_the_first_images_of_a_split_are_a_split() -> None:
    images, numbers = torch.zeros((5, 3, 8, 8), dtype=torch.uint8), torch.arange(5)
    split = Split(images=images, labels=numbers, indices=numbers.numpy(), rows=5)
    assert first_images(split, 3).labels.tolist() == [0, 1, 2] and len(first_images(split, 9)) == 5


def test_the_folder_of_a_run_that_was_trained_is_refused_and_a_new_one_is_marked(tmp_path: Path) -> None:
    trained, new = RunFolder(path=tmp_path / "trained"), RunFolder(path=tmp_path / "new")
    for folder in (trained, new):
        folder.create()
    trained.journal(1).write_text("{}\n")
    with pytest.raises(ConfigError, match="holds a run that was trained"):
        trial._open(trained)
    assert trial._open(new) == {} and (new.path / "saved.json").exists()
    new.journal(1).write_text("{}\n")
    assert trial._open(new) == {}, "a folder that is marked stays a trial's"


def restored(step: int = 20, weight: float = 1.0) -> Trial:
    """A trial at its second start, with just what the check reads."""
    state = TrainState(tensors={"model/w": torch.tensor([weight])}, scalars={"step": step})
    bare = object.__new__(Trial)
    sums = EpochSums.nothing()
    engine = SimpleNamespace(step=step, epoch_sums=lambda: sums, state=lambda sums: state, world=SimpleNamespace(is_main=True))
    vars(bare).update(engine=engine)
    return bare


def test_a_restored_state_with_another_digest_or_step_fails_the_trial() -> None:
    saved = {"step": 20, "state_digest": state_digest(restored().engine.state(EpochSums.nothing()))}
    restored()._check_restored(saved)
    with pytest.raises(CheckpointError, match=r"the state resumed at step 20 has digest [0-9a-f]{16}, [0-9a-f]{16} was saved"):
        restored(weight=1.0000001)._check_restored(saved)
    with pytest.raises(CheckpointError, match="resumed at step 13, but step 20 was saved"):
        restored(step=13)._check_restored(saved)
