"""Networks and losses of somebody else's code: found by name, called with their arguments, and held to what the engine rests on.

Where their modules lie is own_code.py's business, what a key may say is args.py's. One invariant: whatever that code draws from the
global generators is a pure function of seed and step, and the generators end as they were.
"""

import contextlib
import copy
import importlib
import inspect
import logging
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seresnet.config import ModelConfig, TrainConfig, plain_args, split_target
from seresnet.errors import ConfigError, ToolkitError
from seresnet.exits import is_gpu_fault, is_out_of_memory
from seresnet.own_code import make_importable
from seresnet.randomness import words
from seresnet.strict_yaml import nearest

log = logging.getLogger("seresnet")

Loss = Callable[[Tensor, Tensor], Tensor]


def build_network(config: ModelConfig, num_classes: int, seed: int) -> nn.Module:
    """What model.target gives for model.args, on the CPU in float32; equal arguments and seed give equal weights.

    num_classes is handed over too if the callable takes it and model.args do not say it. Raises ConfigError, with the reason, for
    what cannot be found, called or trained.
    """
    target = config.target
    assert target is not None, "the built-in network is models.py's"
    with own_draws(seed, "own/init", 0, 0, torch.device("cpu")):
        callable_: Callable[..., Any] = find("model.target", target)
        arguments = plain_args(config.args)
        if "num_classes" not in arguments and takes(callable_, "num_classes"):
            arguments["num_classes"] = num_classes
        refuse_arguments("model", target, callable_, arguments)
        with explained("model.target", target):
            network = callable_(**arguments)
    return _trainable(target, network)


def own_loss(config: TrainConfig) -> Loss:
    """train.loss_target as a sum over samples; a class is made with train.loss_args first, a function gets them at each call.

    The loss raises ConfigError where the callable gives neither one number nor one for each sample.
    """
    target, arguments = config.loss_target, plain_args(config.loss_args)
    assert target is not None, "cross-entropy is engine.py's"
    callable_: Any = find("train.loss_target", target)
    if inspect.isclass(callable_):
        with explained("train.loss_target", target):
            callable_, arguments = callable_(**arguments), {}
        if isinstance(callable_, nn.Module) and any(True for _ in callable_.parameters()):
            raise ConfigError(f"train.loss_target: {target} has parameters, which nobody would train. Move them into the network.")

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        with explained("train.loss_target", target):
            value = callable_(logits, targets, **arguments)
        if not isinstance(value, Tensor) or value.shape not in ((), (len(logits),)) or not value.requires_grad:
            raise ConfigError(
                f"train.loss_target: {target} gives {_what(value)} for logits {tuple(logits.shape)}. "
                f"One number that is the sum over samples is wanted, or {len(logits)} numbers, and a gradient towards the logits."
            )
        return value.float().sum()

    return loss


def refuse_other_logits(target: str, logits: object, n: int, num_classes: int) -> None:
    """Raise ConfigError unless they are (n, num_classes)."""
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (n, num_classes):
        raise ConfigError(
            f"model.target: {target} gives {_what(logits)} for {n} images of {num_classes} classes. "
            f"Logits of shape ({n}, {num_classes}) are wanted, while training and in evaluation."
        )


def probe(target: str, network: nn.Module, size: tuple[int, int], num_classes: int, device: torch.device) -> None:
    """One forward pass of two blank images, in evaluation: a wrong shape is found before anything is trained. Raises ConfigError."""
    images = torch.zeros((2, 3, *size), device=device)
    was_training = network.training
    with own_draws(0, "own/probe", 0, 0, device), torch.no_grad(), explained("model.target", target):
        logits = network.to(device).eval()(images)
    network.train(was_training)
    refuse_other_logits(target, logits, 2, num_classes)


@contextlib.contextmanager
def own_draws(seed: int, purpose: str, epoch: int, row: int, device: torch.device) -> Iterator[None]:
    """The global generators of torch, numpy and Python begin with a word of the randomness law, and end as they were."""
    word = int(words(seed, purpose, epoch, row + 1)[row, 0]) >> 1  # torch takes 63 bits without a sign
    gpus = [device.index or 0] if device.type == "cuda" else []
    python, old = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=gpus):
        # Not torch.manual_seed: it seeds the generators of all GPUs.
        torch.default_generator.manual_seed(word)
        for gpu in gpus:
            torch.cuda.default_generators[gpu].manual_seed(word)
        random.seed(word)
        np.random.seed(word % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(old)


@contextlib.contextmanager
def explained(key: str, target: str) -> Iterator[None]:
    """Turn what somebody else's code raises into a ConfigError with its place; what a machine is to blame for passes."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ToolkitError | OSError) or is_out_of_memory(error) or is_gpu_fault(str(error)):
            raise
        raise raised(key, target, error) from error


def raised(key: str, target: str, error: Exception) -> ConfigError:
    """What to raise for it, with its place; the traceback goes to the log."""
    log.error("own_code key=%s target=%s", key, target, exc_info=error)
    at = traceback.extract_tb(error.__traceback__)[-1]
    return ConfigError(f"{key}: {target} raised {type(error).__name__}: {str(error)[:500]} ({at.filename}:{at.lineno}). Correct it.")


def find(key: str, target: str) -> Callable[..., Any]:
    """The callable that a target names. Raises ConfigError with the nearest name."""
    module_name, path = split_target(target)
    found: Any = _module(key, target, module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            near = nearest(part, [name for name in dir(found) if not name.startswith("_")])
            place = getattr(found, "__file__", None) or getattr(found, "__name__", module_name)
            raise ConfigError(f"{key}: {target}: {place} has no {part}. {f'Did you mean {near}?' if near else 'Correct the name.'}")
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError(f"{key}: {target} is {_what(found)}, something to call is wanted.")
    return found  # type: ignore[no-any-return]


def _module(key: str, target: str, name: str) -> ModuleType:
    make_importable()
    try:
        with explained(key, target):
            return importlib.import_module(name)
    except ConfigError as error:
        missing = error.__cause__
        if not isinstance(missing, ModuleNotFoundError):
            raise
        if missing.name and f"{name}.".startswith(f"{missing.name}."):
            where = "Set --code-root to the folder that it lies in (in a sweep: code_root), or install it"
            raise ConfigError(f"{key}: {target}: there is no module {missing.name} for {sys.executable}. {where}.") from missing
        raise ConfigError(f"{key}: {target}: imports {missing.name}, which is not installed for {sys.executable}.") from missing


def takes(callable_: Callable[..., Any], name: str) -> bool:
    """Whether it has a parameter of this name, or takes any."""
    try:
        parameters = inspect.signature(callable_).parameters
    except (ValueError, TypeError):  # of built-in code nothing is known
        return False
    return name in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def refuse_arguments(section: str, target: str, callable_: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Raise ConfigError, with what it takes, where it cannot be called with these."""
    try:
        signature = inspect.signature(callable_)
    except (ValueError, TypeError):
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{section}.args: {target} takes {signature}: {error}. Correct the arguments.") from error


def _trainable(target: str, network: object) -> nn.Module:
    """The network as the engine takes it. Raises ConfigError for what could not be saved, averaged or resumed."""
    if not isinstance(network, nn.Module):
        raise ConfigError(f"model.target: {target} gives {_what(network)}, a torch.nn.Module is wanted.")
    if lazy := next((name for name, value in network.named_parameters() if torch.nn.parameter.is_lazy(value)), None):
        raise ConfigError(
            f"model.target: {target}: {lazy} has no shape before the first forward pass. Name its size instead of a Lazy layer."
        )
    network = network.to("cpu").float()
    held = {name for name, _ in (*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False))}
    if strange := sorted(network.state_dict().keys() - held):
        raise ConfigError(
            f"model.target: {target}: {strange[0]} of its state_dict is neither a parameter nor a buffer, so it could not be resumed. "
            "Register it as a buffer."
        )
    if not any(value.requires_grad for value in network.parameters()):
        raise ConfigError(f"model.target: {target} has no parameter to train.")
    with explained("model.target", target):
        copy.deepcopy(network)  # evaluation and averages work on copies
    return network


def _what(value: object) -> str:
    if isinstance(value, Tensor):
        words = f"a tensor {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
        return words if value.requires_grad or value.dim() != 0 else f"{words} without a gradient"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"an object of type {type(value).__name__}"
