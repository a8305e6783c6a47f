"""Networks and losses of somebody else's: how they are found and called, what is refused, and that they keep the randomness law."""

import random
from dataclasses import replace

import numpy as np
import pytest
import small_engine
import torch
from torch import nn

from seresnet.accounting import multiply_adds
from seresnet.adaptation import adapted
from seresnet.assembly import build_engine
from seresnet.config import ModelConfig, RunConfig
from seresnet.engine import Engine
from seresnet.errors import ConfigError
from seresnet.models import build_model, count_parameters
from seresnet.state import state_digest
from seresnet.targets import find
from seresnet.trained import Classifier, Normalisation


def own(target: str, micro: int | None = 8, **args: object) -> RunConfig:
    model = ModelConfig(target=f"own_nets:{target}", args=tuple(sorted(args.items())))  # type: ignore[arg-type]
    return replace(small_engine.config(micro), model=model)


def with_loss(name: str, **args: object) -> RunConfig:
    run = small_engine.config(8)
    return replace(run, train=replace(run.train, loss_target=f"own_nets:{name}", loss_args=tuple(sorted(args.items()))))


def digest(engine: Engine) -> str:
    return state_digest(engine.state(engine.epoch_sums()))


def stepped(engine: Engine, steps: int) -> Engine:
    for _ in range(steps):
        engine.train_step()
    return engine


def disturb() -> None:
    """What another library might do to the global generators between two steps, or another process at its start."""
    random.seed(random.random())
    np.random.seed(int(np.random.rand() * 1e6))
    torch.manual_seed(torch.randint(10**6, ()).item())


def generators() -> tuple[object, ...]:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


def test_initial_weights_are_a_function_of_the_seed_and_the_global_generators_end_as_they_were() -> None:
    before = generators()
    weights = [build_model(own("Dropping").model, 5, seed).state_dict()["first.weight"] for seed in (3, 3, 4)]
    assert generators() == before
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(("target", "args", "outputs"), [("linear", {}, 7), ("linear", {"num_classes": 4}, 4), ("catching", {}, 7)])
def test_number_of_classes_is_handed_over_unless_the_arguments_say_it(target: str, args: dict[str, int], outputs: int) -> None:
    assert build_model(own(target, **args).model, 7, 0)(torch.zeros(1, 3, 16, 16)).shape == (1, outputs)


def test_callable_that_does_not_ask_for_the_classes_is_called_with_its_arguments_alone() -> None:
    assert build_model(own("Dropping", width=6).model, 7, 0)(torch.zeros(2, 3, 16, 16)).shape == (2, 5)


def test_parameters_and_multiply_adds_of_a_linear_network_are_those_of_a_hand_sum() -> None:
    config = own("linear", bias=False).model
    assert count_parameters(build_model(config, 5, 0)) == 3 * 16 * 16 * 5
    assert multiply_adds(config, 5, (16, 16)) == 3 * 16 * 16 * 5


def test_resumed_network_with_dropout_has_the_bits_of_an_undisturbed_one() -> None:
    run = own("Dropping")
    whole = stepped(small_engine.engine(run), 7)
    first = stepped(small_engine.engine(run), 3)
    disturb()
    second = small_engine.engine(run)
    second.load(first.state(first.epoch_sums()))
    disturb()
    assert digest(stepped(second, 4)) == digest(whole)


def test_every_micro_batch_of_every_step_drops_others() -> None:
    """A constant seed would pass the test of resuming."""
    run = own("Dropping", drop=0.5, width=64)
    engine, seen = small_engine.engine(run), []
    engine.model.get_submodule("drop").register_forward_hook(lambda _, __, out: seen.append((out == 0).flatten().tolist()[:64]))
    stepped(engine, 2)
    assert len({tuple(mask) for mask in seen}) == len(seen) == 8


def test_loss_that_draws_keeps_the_law_too() -> None:
    run, before = with_loss("noisy"), generators()
    found = []
    for _ in range(2):
        found.append(digest(stepped(small_engine.engine(run), 2)))
        assert generators() == before
        disturb()
        before = generators()
    assert found[0] == found[1]


def test_only_the_first_micro_batch_moves_statistics_of_batch_norm_of_one_dimension() -> None:
    engine = stepped(small_engine.engine(own("Dropping", micro=8)), 2)
    assert int(engine.model.get_buffer("norm.num_batches_tracked")) == 2


def test_batch_norm_of_one_dimension_is_adapted_to_other_images() -> None:
    run = own("Dropping")
    network = build_model(run.model, 5, 0).eval()
    statistics = Normalisation(mean=(0.5,) * 3, std=(0.25,) * 3)
    classifier = Classifier(
        network=network, config=run, classes=tuple("abcde"), normalisation=statistics, size=(16, 16), origin="", device=small_engine.CPU
    )
    images = small_engine.arrays().train_images
    flat = network.get_submodule("first")(classifier.prepared(classifier._planar(images)).flatten(1))
    mean = adapted(classifier, images).network.get_buffer("norm.running_mean")
    assert torch.allclose(mean, flat.mean(0), atol=1e-5)


@pytest.mark.parametrize("name", ["soft_cross_entropy", "Smoothed"])
def test_cross_entropy_written_by_somebody_else_trains_as_the_built_in_one(name: str) -> None:
    ours = stepped(small_engine.engine(small_engine.config(8)), 3)
    theirs = stepped(small_engine.engine(with_loss(name, scale=1.0)), 3)
    for (key, one), other in zip(ours.model.state_dict().items(), theirs.model.state_dict().values(), strict=True):
        assert torch.allclose(one, other, atol=1e-6), key
    doubled = stepped(small_engine.engine(with_loss(name, scale=2.0)), 3)
    assert doubled.epoch_sums().mean_loss == pytest.approx(2 * (ours.epoch_sums().mean_loss or 0), rel=0.2)
    assert digest(doubled) != digest(theirs)


@pytest.mark.parametrize(
    ("target", "args", "said"),
    [
        ("Linear", {}, "own_nets.py has no Linear. Did you mean linear?"),
        ("a_number", {}, "an object of type int, something to call is wanted"),
        ("broken", {}, "raised LookupError: no such backbone"),
        (
            "linear",
            {"depth": 3},
            "takes (num_classes: int, size: int = 16, bias: bool = True) -> torch.nn.modules.module.Module: got an une",
        ),
        ("no_network", {}, "gives an object of type dict, a torch.nn.Module is wanted"),
        ("Lazy", {}, "net.weight has no shape before the first forward pass"),
        ("remembering", {}, "1._extra_state of its state_dict is neither a parameter nor a buffer"),
        ("frozen", {}, "has no parameter to train"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(target: str, args: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_model(own(target, **args).model, 5, 0)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("own_netz:linear", "there is no module own_netz for"),
        ("own_nets.deeper:linear", "there is no module own_nets.deeper for"),
        ("own_imports:build", "imports a_package_that_nobody_has, which is not installed"),
    ],
)
def test_module_that_is_not_there_is_told_from_one_that_it_imports(target: str, said: str, tmp_path, monkeypatch) -> None:
    (tmp_path / "own_imports.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=said):
        find("model.target", target)


@pytest.mark.parametrize(("target", "said"), [("Pair", "gives a tuple of 2 for 2 images"), ("misshapen", "raised RuntimeError")])
def test_wrong_output_or_input_is_refused_before_anything_is_trained(target: str, said: str) -> None:
    data = small_engine.arrays()
    data.classes = tuple("abcde")
    world = small_engine.engine(small_engine.config()).world
    with pytest.raises(ConfigError, match=said):
        build_engine(own(target), data, world)  # type: ignore[arg-type]


def test_network_whose_output_is_wrong_only_in_training_is_refused_at_its_first_step() -> None:
    engine = small_engine.engine(own("linear", num_classes=6))
    with pytest.raises(ConfigError, match=r"gives a tensor float32 \(8, 6\) for 8 images of 5 classes"):
        engine.train_step()


@pytest.mark.parametrize(
    ("name", "said"),
    [("wrong_shape", r"a tensor float32 \(8, 5\) for logits"), ("detached", "without a gradient"), ("Trainable", "has parameters")],
)
def test_loss_of_another_form_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        small_engine.engine(with_loss(name)).train_step()


def test_batch_norm_that_keeps_no_statistics_is_left_alone() -> None:
    """A batch norm that never tracked must not be told to."""
    engine = small_engine.engine(own("linear"))
    engine.model.add_module("norm", nn.BatchNorm2d(3, track_running_stats=False))
    assert Engine(engine.config, engine.model, engine.batches, engine.world)._batch_norms == []
