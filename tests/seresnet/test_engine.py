"""One step of the engine against a plain loop written here, and what its sums and statistics promise."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from same_bits import assert_same_bits_after_a_resume
from small_engine import CPU, arrays, config, engine

from seresnet.config import ModelConfig, RunConfig
from seresnet.data import TrainBatches, load_splits
from seresnet.engine import LOSS_UNIT, Engine, is_countable
from seresnet.errors import CheckpointError, ConfigError
from seresnet.evaluation import evaluate
from seresnet.loss_watch import LossWatch
from seresnet.models import build_model
from seresnet.world import World


@pytest.mark.parametrize("micro", [None, 8])
def test_steps_equal_a_plain_loop(micro: int | None) -> None:
    ours = engine(config(micro, channels_last=False))
    model = build_model(ours.config.model, 5, 0).train()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for step in range(5):
        epoch, batch = divmod(step, 3)  # 70 images in batches of 32, 32 and 6
        sgd.param_groups[0]["lr"] = 0.1 * (epoch + 1) / 2
        parts = [ours.batches.micro_batch(epoch, batch, m) for m in range(ours.batches.micro_batches)]
        total = sum(len(part.images) for part in parts)
        assert total == (32, 32, 6)[batch]
        sgd.zero_grad()
        for part in parts:
            if len(part.images):
                (F.cross_entropy(model(part.images), part.targets, reduction="sum") / total).backward()
        sgd.step()
        ours.train_step()
    for (name, found), expected in zip(ours.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_only_the_first_micro_batch_moves_running_statistics() -> None:
    ours = engine(config(8))
    ours.train_step()
    norm = ours.model.stem[1]
    alone = build_model(ours.config.model, 5, 0).train()
    alone(ours.batches.micro_batch(0, 0, 0).images)
    assert int(norm.num_batches_tracked) == 1
    torch.testing.assert_close(norm.running_mean, alone.stem[1].running_mean)


def test_sums_count_every_sample_once_and_equal_a_sum_by_hand() -> None:
    ours = engine(config(8, epochs=1))
    model, expected = ours.model, 0.0
    for batch in range(3):
        for micro in range(4):
            part = ours.batches.micro_batch(0, batch, micro)
            if len(part.images):
                model.train()
                with torch.no_grad(), ours._update_statistics(False):
                    expected += float(F.cross_entropy(model(part.images), part.targets, reduction="sum"))
        ours.train_step()
    sums = ours.epoch_sums()
    assert sums.n == 70 and sums.not_finite == 0
    assert sums.loss / LOSS_UNIT == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_state_loaded_into_a_fresh_engine_goes_on_with_the_same_bits(amp: str) -> None:
    assert_same_bits_after_a_resume(engine(config(8, amp=amp)), engine(config(8, amp=amp)), before=4, after=3)


def test_a_state_holds_the_state_dict_and_the_momentum_and_keeps_them_while_training_goes_on() -> None:
    ours = engine(config())
    ours.train_step()
    state = ours.state(ours.epoch_sums())
    expected = {f"model/{name}": value.clone() for name, value in ours.model.state_dict().items()}
    for name, value in ours.model.named_parameters():
        expected[f"momentum/{name}"] = ours.optimizer.state[value]["momentum_buffer"].clone()
    ours.train_step()
    assert state.tensors.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(state.tensors[name], expected[name])]
    assert not different, different


@pytest.mark.parametrize("fused", [False, True])
def test_fp16_overflow_skips_the_step_and_is_counted(fused: bool) -> None:
    ours = engine(config(amp="fp16", fused_optimizer=fused))
    ours.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**80)
    before = [parameter.clone() for parameter in ours.model.parameters()]
    ours.train_step()
    assert all(torch.equal(a, b) for a, b in zip(before, ours.model.parameters(), strict=True)), "an overflowed step moved weights"
    assert ours.epoch_sums().skipped == 1 and ours.step == 1


def test_a_state_of_another_width_is_refused_by_name_and_shape() -> None:
    small = engine(config())
    large = engine(RunConfig(**{**vars(config()), "model": ModelConfig(width=8, blocks=(1, 1), attention="se", reduction=2)}))
    with pytest.raises(CheckpointError, match=r"model/.*: the checkpoint has float32 \(.*\), the config says float32 \(.*\)\."):
        large.load(small.state(small.epoch_sums()))


def test_a_world_that_does_not_divide_the_batch_is_refused_with_those_that_do() -> None:
    run, data = config(8), arrays()
    batches = TrainBatches(load_splits(run, data, CPU).train, run, 5, data.mean, data.std, CPU)
    with pytest.raises(ConfigError, match=r"3 ranks cannot share .* Use one of: 1, 2, 4; or set train\.micro_batch_size"):
        Engine(run, build_model(run.model, 5, 0), batches, World(rank=0, local_rank=0, size=3, device=CPU))


def test_three_losses_in_a_row_that_are_not_finite_are_a_divergence() -> None:
    watch = LossWatch(CPU)
    for value in (False, False, True, False, False):
        watch.push(torch.tensor(value))
    assert not watch.has_diverged, "a finite loss between them must start the count anew"
    watch.push(torch.tensor(False))
    assert watch.has_diverged


def test_evaluation_equals_a_plain_one_and_counts_every_sample() -> None:
    ours, data = engine(config()), arrays()
    splits = load_splits(ours.config, data, CPU)
    ours.train_step()
    found = evaluate(ours, splits.test)
    assert found is not None and found.n == 23
    model = ours.model.eval()
    images = (torch.from_numpy(data.test_images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        logits = model(images)
    labels = torch.from_numpy(data.test_labels)
    assert found.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    expected = np.zeros((5, 5), int)
    np.add.at(expected, (data.test_labels, logits.argmax(1).numpy()), 1)
    assert found.confusion == expected.tolist()


def test_a_stopped_evaluation_gives_nothing() -> None:
    ours = engine(config())
    calls = iter([False, True])
    assert evaluate(ours, load_splits(ours.config, arrays(), CPU).test, lambda: next(calls)) is None


def test_one_bad_step_counts_once_however_many_micro_batches_it_has() -> None:
    ours = engine(config(8))
    with torch.no_grad():
        ours.model.head.bias.fill_(float("nan"))
    ours.train_step()
    assert ours.losses.bad_in_a_row == 1 and not ours.losses.has_diverged


@pytest.mark.parametrize(("loss", "expected"), [(2.0**37, True), (2.0**38, False), (float("inf"), False), (float("nan"), False)])
def test_a_loss_that_the_integer_sums_cannot_hold_counts_as_not_finite(loss: float, expected: bool) -> None:
    assert bool(is_countable(torch.tensor(loss))) is expected
