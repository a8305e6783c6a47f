"""One optimiser step, and the state that it changes: weights, buffers, their averages, momentum, scaler, position, sums of the epoch.

What a step computes is a pure function of (state, config, step). When to save, evaluate or stop is train.py's business. One
invariant: state() at a step boundary holds everything that the next step reads.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from seresnet.config import RunConfig, fitting_world_sizes, micro_batch_size, schedule_epochs
from seresnet.data import MicroBatch, TrainBatches
from seresnet.ema import WeightAverage
from seresnet.errors import CheckpointError, ConfigError
from seresnet.folding import FoldedNetwork
from seresnet.host_copies import HostCopies
from seresnet.loss_watch import LossWatch
from seresnet.optim import build_optimizer, clip_gradients, learning_rate, set_learning_rate
from seresnet.parallel import share_gradients
from seresnet.state import TrainState
from seresnet.targets import own_draws, own_loss, refuse_other_logits
from seresnet.world import World

if TYPE_CHECKING:
    from seresnet.compiled import CompiledRegions

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}

#: Losses are summed as integers of 2^-24, so that neither the order of ranks nor a restart changes the last bits of a mean.
LOSS_UNIT = 2**24


@dataclass(frozen=True, kw_only=True)
class EpochSums:
    """Totals of an epoch's training samples over all ranks, as exact integers."""

    loss: int  # in units of 2^-24
    correct: int
    n: int
    not_finite: int  # samples' worth of micro-batches whose loss was not finite
    skipped: int  # optimiser steps that fp16 scaling skipped

    @classmethod
    def nothing(cls) -> "EpochSums":
        """The sums of an epoch that has not begun."""
        return cls(loss=0, correct=0, n=0, not_finite=0, skipped=0)

    @property
    def mean_loss(self) -> float | None:
        """None when some micro-batch had no finite loss: a mean without it would flatter."""
        return None if self.not_finite or not self.n else self.loss / LOSS_UNIT / self.n

    @property
    def top1_pct(self) -> float:
        return 100 * self.correct / max(1, self.n)


class Engine:
    """The network, its optimiser and its position. Every rank has one; rank 0's is the state that is saved."""

    def __init__(self, config: RunConfig, model: nn.Module, batches: TrainBatches, world: World) -> None:
        """Move the network to its device and wrap it. Raises ConfigError for a world size that does not fit the batch."""
        self.config, self.batches, self.world = config, batches, world
        self.accumulation = _accumulation(config, world.size)
        self._layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        self.model = model.to(world.device, memory_format=self._layout)  # type: ignore[call-overload]
        self._compiled = _compiled(self.model, config, world)
        self.optimizer = build_optimizer(self.model, config.optim, _is_fused(config, world.device))
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=config.train.amp == "fp16")
        self._batch_norms = [m for m in self.model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self._loss = cross_entropy_sum if config.train.loss_target is None else own_loss(config.train)
        self._sums = torch.zeros(5, dtype=torch.int64, device=world.device)
        self._finite = torch.ones((), dtype=torch.bool, device=world.device)  # of the running step
        self._host_copies = HostCopies(world.device)
        self._slots = _slots(self.model)
        self.average = WeightAverage(self.model, config.optim.ema_decay) if config.optim.ema_decay else None
        self._evaluated: FoldedNetwork | None = None
        self.losses = LossWatch(world.device)
        self.step = 0
        self.best_value: float | None = None
        self.best_epoch: int | None = None
        self._parallel = self._wrap() if world.size > 1 else None

    @property
    def steps_per_epoch(self) -> int:
        return self.batches.steps_per_epoch

    @property
    def epoch(self) -> int:
        """The epoch, from 0, that the next step belongs to."""
        return self.step // self.steps_per_epoch

    @property
    def at_epoch_end(self) -> bool:
        """Whether the last step consumed an epoch's last batch."""
        return self.step > 0 and self.step % self.steps_per_epoch == 0

    def lr_of(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        return learning_rate(self.config.optim, schedule_epochs(self.config), epoch)

    def train_step(self) -> None:
        """Consume the next global batch: forward and backward of this rank's micro-batches, one optimiser step."""
        epoch, batch = divmod(self.step, self.steps_per_epoch)
        if batch == 0:
            self._sums.zero_()
        set_learning_rate(self.optimizer, self.lr_of(epoch))
        if not self.model.training:
            self.model.train()  # walks through a hundred modules
        self._finite = torch.ones_like(self._finite)
        first = self.world.rank * self.accumulation
        for micro in range(first, first + self.accumulation):
            self._backward(epoch, batch, micro, is_last=micro == first + self.accumulation - 1)
        self._optimizer_step()
        if self._compiled is not None:
            self._compiled.step_done(whole=self.batches.size(batch) == self.config.train.global_batch_size)
        self.losses.push(self._finite)
        self.step += 1

    def epoch_sums(self) -> EpochSums:
        """Sums of the running epoch over all ranks. Every rank must call it at the same step; waits for the device."""
        loss, correct, n, not_finite, skipped = (int(x) for x in self.world.sum(self._sums.cpu()).tolist())
        return EpochSums(loss=loss, correct=correct, n=n, not_finite=not_finite, skipped=skipped)

    def state(self, sums: EpochSums) -> TrainState:
        """A host copy of everything that the next step reads; sums as epoch_sums() gave them at this step."""
        scalars = {
            "step": self.step,
            "sums": [sums.loss, sums.correct, sums.n, sums.not_finite, sums.skipped],
            "scaler": self.scaler.state_dict(),
            "best_value": self.best_value,
            "best_epoch": self.best_epoch,
        }
        return TrainState(tensors=self._host_copies.copy(self._tensors()), scalars=scalars)

    def load(self, state: TrainState) -> None:
        """Continue from a state; every rank loads the same one. Raises CheckpointError naming a tensor that does not fit."""
        own = self._tensors()
        _check_same_tensors(own, state.tensors)
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(state.tensors[name])
        self.step = int(state.scalars["step"])
        self.best_value, self.best_epoch = state.scalars["best_value"], state.scalars["best_epoch"]
        if state.scalars["scaler"]:
            self.scaler.load_state_dict(state.scalars["scaler"])
        # Rank 0 carries the whole epoch's sums on, the others start from zero: integers, so the total has the same bits.
        self._sums.copy_(torch.tensor(state.scalars["sums"] if self.world.is_main else [0] * 5))

    def network_to_evaluate(self) -> nn.Module:
        """The network as it is evaluated now, in evaluation mode: averaged weights where they are kept, batch norm folded in.

        On every rank together, before an evaluation and never before a save: it gives all of them rank 0's batch-norm statistics.
        """
        source = self.model if self.average is None else self.average.model
        if self.world.size > 1:
            for buffer in source.buffers():
                dist.broadcast(buffer, src=0)
        if self._evaluated is None:
            self._evaluated = FoldedNetwork(source)  # a copy, which is not compiled
        self._evaluated.refresh()
        return self._evaluated.network

    def autocast(self) -> Any:
        """The autocast context of training and evaluation."""
        amp = self.config.train.amp
        return torch.autocast(self.world.device.type, dtype=AMP_DTYPES[amp], enabled=amp != "off")

    def _backward(self, epoch: int, batch: int, micro: int, *, is_last: bool) -> None:
        data = self.batches.micro_batch(epoch, batch, micro)
        if len(data.images) == 0 and not (is_last and self._parallel):
            return
        draws, compiled = self._draws_of_others("own/step", self.step, micro), self._compiled_for(len(data.images))
        with self._synchronise(is_last), self._update_statistics(micro == 0), compiled, draws:
            if len(data.images) == 0:
                # A rank without samples (an epoch's short last batch) must still meet the others in the all-reduce.
                return self._backward_of_nothing()
            with self.autocast():
                logits = (self._parallel or self.model)(self.laid_out(data.images), *(() if data.keep is None else (data.keep,)))
            if (target := self.config.model.target) is not None:
                refuse_other_logits(target, logits, len(data.images), self.batches.classes)
            loss = self._loss(logits.float(), data.targets)
            self.scaler.scale(loss / self.batches.size(batch)).backward()
        self._count(loss.detach(), logits.detach(), data)

    def _backward_of_nothing(self) -> None:
        """A backward pass whose gradients are all zero."""
        images = torch.zeros((2, *self.batches.split.images.shape[1:]), device=self.world.device)
        with self.autocast():
            logits = (self._parallel or self.model)(self.laid_out(images))
        self.scaler.scale(logits.float().sum() * 0.0).backward()

    def _draws_of_others(self, purpose: str, step: int, micro: int) -> contextlib.AbstractContextManager[None]:
        """Around the pass of a micro-batch. Our own network and loss draw nothing, so they need no generator."""
        if self.config.model.target is None and self.config.train.loss_target is None:
            return contextlib.nullcontext()
        return own_draws(self.config.train.seed, purpose, step, micro, self.world.device)

    def laid_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=self._layout)

    def _optimizer_step(self) -> None:
        # The scale falls exactly when a step is skipped. get_scale() would wait for the device, its async form does not.
        scale = self.scaler._get_scale_async() if self.scaler.is_enabled() else None
        before = None if scale is None else scale.clone()
        if (limit := self.config.optim.clip_norm) is not None:
            self.scaler.unscale_(self.optimizer)  # type: ignore[arg-type]  # does nothing but with fp16
            clip_gradients(self.model, limit)
        self.scaler.step(self.optimizer)  # type: ignore[arg-type]  # Sgd has what GradScaler asks an optimiser for
        self.scaler.update()
        if scale is not None and before is not None and self.world.is_main:
            self._sums[4:] += (scale < before).long()  # update() changes the tensor in place
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.step)

    def _count(self, loss: Tensor, logits: Tensor, data: MicroBatch) -> None:
        finite = is_countable(loss)
        units = torch.where(finite, loss.double() * LOSS_UNIT, 0.0).round().long()
        n = len(data.labels)
        correct = (logits.argmax(1) == data.labels).sum()
        # new_full, not new_tensor: that one copies from pageable memory, and the host would wait for the device in every step.
        self._sums[:4] += torch.stack((units, correct, correct.new_full((), n), (~finite).long() * n))
        self._finite &= finite

    def _compiled_for(self, samples: int) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if self._compiled is None else self._compiled.running(samples)

    @contextlib.contextmanager
    def _update_statistics(self, update: bool) -> Iterator[None]:
        """Only micro-batch 0 moves the running statistics, so that they do not depend on the number of ranks."""
        frozen = [] if update else self._batch_norms
        for module in frozen:
            module.track_running_stats = False
        try:
            yield
        finally:
            for module in frozen:
                module.track_running_stats = True

    def _synchronise(self, is_last: bool) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._parallel is None or is_last else self._parallel.no_sync()

    def _wrap(self) -> DistributedDataParallel:
        parallel = share_gradients(self.model, self.world.device)
        self._settle_buckets(parallel)
        return parallel

    def _settle_buckets(self, parallel: DistributedDataParallel) -> None:
        """Two throw-away backward passes: DDP orders its buckets anew after a process's first one.

        Without them the first step after a restart adds gradients in another order and has other bits (seen with 3 and 4 ranks).
        """
        parallel.train()
        # Batch norm's buffers stay by themselves; what else a network of somebody else's moves is put back.
        moved = [] if self.config.model.target is None else [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        with self._update_statistics(False), self._compiled_for(2), self._draws_of_others("own/settle", 0, 0):
            for _ in range(2):
                with self.autocast():
                    logits = parallel(self.laid_out(self.batches.micro_batch(0, 0, 0).images[:2]))
                (logits.float().sum() * 0.0).backward()
        for buffer, before in moved:
            buffer.copy_(before)
        self.optimizer.zero_grad(set_to_none=True)

    def _tensors(self) -> dict[str, Tensor]:
        """What a state holds, where it is: on the device."""
        tensors = {f"model/{name}": holder[leaf] for name, holder, leaf in self._slots}
        for name, parameter in self.model.named_parameters():
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum/{name}"] = buffer
        if self.average is not None:
            tensors |= {f"ema/{name}": value for name, value in self.average.tensors.items()}
        return tensors


def _compiled(model: nn.Module, config: RunConfig, world: World) -> "CompiledRegions | None":
    if not config.train.compile:
        return None
    from seresnet.compiled import CompiledRegions  # torch's compiler takes seconds to import

    return CompiledRegions(model, config, world)


def _is_fused(config: RunConfig, device: torch.device) -> bool:
    """fp16 on a GPU always takes the fused update: before any other, GradScaler makes the host wait to hear whether to skip the step."""
    return config.train.fused_optimizer or (config.train.amp == "fp16" and device.type == "cuda")


def is_countable(loss: Tensor) -> Tensor:
    """Whether a summed loss is finite and small enough for the integer sums; 0-dim bool tensor. 2^38 in units of 2^-24 is 2^62."""
    return torch.isfinite(loss) & (loss < 2**38)


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy summed over samples. logits, targets: (N, K), targets are probabilities (soft labels)."""
    return -(targets * torch.log_softmax(logits, dim=1)).sum()


def _accumulation(config: RunConfig, world_size: int) -> int:
    fitting = fitting_world_sizes(config)
    if world_size not in fitting:
        raise ConfigError(
            f"train.ranks: {world_size} ranks cannot share global_batch_size {config.train.global_batch_size} in micro-batches of "
            f"{micro_batch_size(config)}. Use one of: {', '.join(map(str, fitting))}; or set train.micro_batch_size, which batch norm sees."
        )
    return config.train.global_batch_size // micro_batch_size(config) // world_size


def _slots(model: nn.Module) -> list[tuple[str, Mapping[str, Any], str]]:
    """Where each tensor of the state_dict hangs: its name, the dict of its module, its name in there.

    Asked at each save instead of state_dict(), whose hooks and copies took a fifth of a save's stall (CPU, 4.7 M parameters).
    """
    slots: list[tuple[str, Mapping[str, Any], str]] = []
    for name in model.state_dict():
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        slots.append((name, module._parameters if leaf in module._parameters else module._buffers, leaf))
    return slots


def _check_same_tensors(own: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    for name in sorted(own.keys() | saved.keys()):
        if name not in own or name not in saved:
            side = "the checkpoint" if name in saved else "the config's network"
            raise CheckpointError(f"{name} is only in {side}. Restore the config that the run was started with, or start a new sweep.")
        is_, was = (f"{value.dtype} {tuple(value.shape)}".removeprefix("torch.") for value in (own[name], saved[name]))
        if is_ != was:
            raise CheckpointError(f"{name}: the checkpoint has {was}, the config says {is_}. Restore the config, or start a new sweep.")
