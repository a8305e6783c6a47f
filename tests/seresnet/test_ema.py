"""Averaged weights against torch's AveragedModel and against sums by hand; and what of them a state holds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from same_bits import assert_same_bits_after_a_resume
from small_engine import config, engine, splits

from seresnet.config import RunConfig
from seresnet.ema import WeightAverage, ema_decay
from seresnet.evaluation import evaluate
from seresnet.models import build_model


def averaging(decay: float = 0.99, micro: int | None = None, **train: object) -> RunConfig:
    run = config(micro, **train)
    return replace(run, optim=replace(run.optim, ema_decay=decay))


@pytest.mark.parametrize(("step", "expected"), [(0, 1 / 10), (1, 2 / 11), (8, 9 / 18), (890, 891 / 900), (891, 0.99), (10**6, 0.99)])
def test_the_decay_rises_to_its_value_with_the_steps(step: int, expected: float) -> None:
    assert ema_decay(0.99, step) == expected


def test_five_steps_equal_an_average_by_hand() -> None:
    ours = engine(averaging(0.3))
    assert ours.average is not None
    names = [name for name, value in ours.model.state_dict().items() if value.is_floating_point()]
    expected = {name: ours.model.state_dict()[name].double().numpy().copy() for name in names}
    for decay in (1 / 10, 2 / 11, 3 / 12, 0.3, 0.3):  # 4/13 is above 0.3
        ours.train_step()
        for name in names:
            expected[name] = decay * expected[name] + (1 - decay) * ours.model.state_dict()[name].double().numpy()
    far = {name: float(np.abs(ours.average.tensors[name].numpy() - expected[name]).max()) for name in names}
    assert max(far.values()) < 1e-6, far
    assert any("running_var" in name for name in names), "batch norm's statistics are not averaged"


def test_a_constant_decay_has_the_bits_of_torchs_averaged_model() -> None:
    model = build_model(config().model, 5, 0)
    ours = WeightAverage(model, 0.5)
    theirs = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5), use_buffers=True)
    theirs.update_parameters(model)  # its first call copies
    for step in range(8, 13):  # from here on the decay is 0.5
        with torch.no_grad():
            for value in model.state_dict().values():
                value.add_(torch.ones_like(value) if not value.is_floating_point() else torch.randn(value.shape))
        ours.update(step)
        theirs.update_parameters(model)
    reference = theirs.module.state_dict()
    different = [name for name, value in ours.tensors.items() if value.is_floating_point() and not torch.equal(value, reference[name])]
    assert not different, different


def test_counters_of_the_average_are_the_networks_own() -> None:
    ours = engine(averaging())
    for _ in range(2):
        ours.train_step()
    assert ours.average is not None
    counters = {name: int(value) for name, value in ours.average.tensors.items() if not value.is_floating_point()}
    assert counters and set(counters.values()) == {2}, counters


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_an_averaging_run_goes_on_with_the_same_bits(amp: str) -> None:
    assert_same_bits_after_a_resume(engine(averaging(micro=8, amp=amp)), engine(averaging(micro=8, amp=amp)), before=4, after=3)


def test_a_state_holds_an_average_of_every_tensor_of_the_network_and_only_where_one_is_kept() -> None:
    plain, ours = engine(config()), engine(averaging())
    without, held = plain.state(plain.epoch_sums()).tensors, ours.state(ours.epoch_sums()).tensors
    assert not [name for name in without if name.startswith("ema/")]
    assert held.keys() - without.keys() == {f"ema/{name}" for name in ours.model.state_dict()}


def test_averaging_changes_no_bit_of_the_training() -> None:
    plain, ours = engine(config()), engine(averaging())
    for _ in range(4):
        plain.train_step()
        ours.train_step()
        evaluate(ours, splits(ours.config).test)
    one, two = plain.state(plain.epoch_sums()), ours.state(ours.epoch_sums())
    assert one.scalars == two.scalars
    different = [name for name, value in one.tensors.items() if not torch.equal(value, two.tensors[name])]
    assert not different, different


def test_a_skipped_step_leaves_the_average_finite_and_at_the_unchanged_weights() -> None:
    ours = engine(averaging(amp="fp16"))
    ours.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**80)
    before = {name: value.clone() for name, value in ours.model.named_parameters()}
    ours.train_step()
    assert ours.epoch_sums().skipped == 1 and ours.average is not None
    moved = [name for name, value in before.items() if not torch.equal(ours.average.tensors[name], value)]
    assert not moved, f"a step that moved no weight moved the average of {moved}"
    assert all(bool(value.isfinite().all()) for value in ours.average.tensors.values())


def test_what_is_evaluated_are_the_averaged_weights() -> None:
    ours = engine(averaging(0.9))
    for _ in range(6):
        ours.train_step()
    assert ours.average is not None
    reference = engine(config())
    reference.model.load_state_dict(ours.average.tensors)
    found, expected, unaveraged = (evaluate(e, splits(ours.config).test) for e in (ours, reference, raw_weights_of(ours)))
    assert found is not None and expected is not None and unaveraged is not None
    assert (found.loss, found.confusion) == (expected.loss, expected.confusion)
    assert found.loss != unaveraged.loss, "the average is the weights themselves: this test tests nothing"


def raw_weights_of(ours):  # type: ignore[no-untyped-def]
    raw = engine(config())
    raw.model.load_state_dict(ours.model.state_dict())
    return raw


def test_averaging_in_the_layout_of_the_network() -> None:
    ours = engine(averaging(channels_last=True))
    assert ours.average is not None
    strides = {name: (value.stride(), ours.model.state_dict()[name].stride()) for name, value in ours.average.tensors.items()}
    assert not [name for name, (a, b) in strides.items() if a != b], strides
