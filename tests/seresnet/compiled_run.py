"""A process that trains a tiny compiled network and prints, as JSON, whether its cache was warm, its graphs, and its digest.

Usage: python compiled_run.py STEPS [--load FILE] [--save FILE [--save-at STEP]] [--aot | --one-pass]
Under RANK, WORLD_SIZE and SERESNET_INIT_METHOD, if any.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from small_engine import arrays, config, splits

from seresnet import compiled, private_folder
from seresnet.assembly import make_deterministic
from seresnet.data import TrainBatches
from seresnet.engine import Engine
from seresnet.models import build_model
from seresnet.state import TrainState, state_digest
from seresnet.world import join


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("steps", type=int)
    parser.add_argument("--load")
    parser.add_argument("--save")
    parser.add_argument("--save-at", type=int, help="unset: at the end")
    parser.add_argument("--aot", action="store_true", help="without Inductor, so without a C++ compiler and its seconds")
    parser.add_argument("--one-pass", action="store_true", help="steps of one micro-batch, so half of the graphs")
    args = parser.parse_args()
    if args.aot:
        compiled._backend = lambda deterministic: {"backend": "aot_eager"}
    world = join("cpu")
    run = config(None if args.one_pass else 16, compile=True)
    if not args.aot:  # a stem and one block: the C++ compiler takes a minute for more
        run = replace(run, model=replace(run.model, blocks=(1,), attention="none"))
    make_deterministic(run)
    data = arrays()
    batches = TrainBatches(splits(run).train, run, 5, data.mean, data.std, world.device, rank=world.rank, ranks=world.size)
    engine = Engine(run, build_model(run.model, 5, 0), batches, world)
    if args.load:
        engine.load(TrainState(**torch.load(args.load)))
    for step in range(1, args.steps + 1):
        engine.train_step()
        if args.save and step == (args.save_at or args.steps):
            save(engine, args.save if world.is_main else os.devnull)
    state = engine.state(engine.epoch_sums())
    found = {"warm": engine._compiled._cache.is_warm, "graphs": compiled.graphs_made(), "digest": state_digest(state)}
    print("RESULT", json.dumps(found), flush=True)
    world.part()
    private_folder.remove_own()
    os._exit(0)


def save(engine: Engine, path: str) -> None:
    """Collected by every rank, written by the first."""
    state = engine.state(engine.epoch_sums())
    tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}  # they share one block of memory
    torch.save({"tensors": tensors, "scalars": state.scalars}, path)


if __name__ == "__main__":
    main()
