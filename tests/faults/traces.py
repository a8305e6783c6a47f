"""What ranks of the kill rings really did: hooks that run in the forked test process, never in the product.

Each rank of each attempt appends lines to trace/ATTEMPT-RANK.jsonl in the folder above the run's, unbuffered: a kill loses no line
that was written. TRACE_DO in the environment lets a rank end itself at a step; TRACE_ATTEMPT numbers the attempt.
"""

import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def steps(run_dir: Path, rank: int) -> None:
    """Log each step as it begins; end there or after it as TRACE_DO says: "KILL before 7 0", "TERM after 12 1" (step, rank)."""
    from seresnet.engine import Engine

    write, plain = _writer(run_dir, rank), Engine.train_step
    number, when, at = _plan(rank)

    def train_step(engine: Engine) -> None:
        if (when, at) == ("before", engine.step):
            os.kill(os.getpid(), number)
        write(step=engine.step, time=time.time())
        plain(engine)
        if (when, at) == ("after", engine.step):
            os.kill(os.getpid(), number)

    Engine.train_step = train_step  # type: ignore[method-assign]


def samples(run_dir: Path, rank: int) -> None:
    """steps(), and beside it what each micro-batch was made of and whether it moved the batch-norm statistics."""
    from seresnet import data
    from seresnet.engine import Engine

    write, plain = _writer(run_dir, rank), Engine._backward
    seen: dict[str, Any] = {}
    _note(data, "draw_mix", lambda mix: seen.update(mode=mix.mode, own_share=mix.own_share, box=mix.box))
    _note(data, "draw_partners", lambda partners: seen.update(partners=partners.tolist()))
    # Not augment(): it takes several micro-batches at once, and how many depends on the number of ranks.
    _note(data, "normalise", lambda images: seen.update(augmented=_digest(images)))
    _note(data.TrainBatches, "micro_batch", lambda got: seen.update(indices=got.indices.tolist(), batch=[*map(_digest, _tensors(got))]))

    def backward(engine: Engine, *args: Any, **more: Any) -> None:
        seen.clear()
        before = [module.running_mean.clone() for module in engine._batch_norms]
        plain(engine, *args, **more)
        moved = [not module.running_mean.equal(old) for module, old in zip(engine._batch_norms, before, strict=True)]
        write(micro_of=engine.step, micro=args[2], moved=sorted(set(moved)), **seen)

    Engine._backward = backward  # type: ignore[method-assign]
    steps(run_dir, rank)


def late(run_dir: Path, rank: int) -> None:
    """Rank TRACE_LATE comes to the rendezvous a minute late."""
    from seresnet import world

    plain = world.join

    def join(*args: Any) -> Any:
        if rank == int(os.environ["TRACE_LATE"]):
            time.sleep(60)
        return plain(*args)

    world.join = join


def read(run_dir: Path) -> list[list[dict[str, Any]]]:
    """For each attempt, oldest first, every line of its ranks; half a line of a killed rank is left out."""
    attempts: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((run_dir.parent / "trace").glob("*.jsonl")):
        whole = path.read_text().rpartition("\n")[0].splitlines()
        attempts.setdefault(path.name.split("-")[0], []).extend(json.loads(line) for line in whole)
    return list(attempts.values())


def surviving(attempts: list[list[dict[str, Any]]], key: str) -> list[dict[str, Any]]:
    """The lines that have the key, a step, less what a later attempt did again."""
    kept: list[dict[str, Any]] = []
    for attempt in attempts:
        lines = [line for line in attempt if key in line]
        first = min((line[key] for line in lines), default=None)
        kept = [line for line in kept if first is None or line[key] < first] + lines
    return kept


def _writer(run_dir: Path, rank: int) -> Callable[..., None]:
    folder = run_dir.parent / "trace"
    folder.mkdir(exist_ok=True)
    handle = os.open(folder / f"{os.environ['TRACE_ATTEMPT']}-{rank}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return lambda **line: (os.write(handle, (json.dumps({"rank": rank, **line}) + "\n").encode()), None)[1]


def _plan(rank: int) -> tuple[signal.Signals, str, int]:
    name, when, at, victim = os.environ.get("TRACE_DO", "KILL never 0 0").split()
    return signal.Signals[f"SIG{name}"], when if rank == int(victim) else "never", int(at)


def _note(owner: Any, name: str, note: Callable[[Any], None]) -> None:
    plain = getattr(owner, name)

    def noting(*args: Any, **more: Any) -> Any:
        result = plain(*args, **more)
        note(result)
        return result

    setattr(owner, name, noting)


def _tensors(batch: Any) -> tuple[Any, ...]:
    return batch.images, batch.targets, batch.labels


def _digest(tensor: Any) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:16]
