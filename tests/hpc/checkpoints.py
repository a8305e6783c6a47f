"""Checkpoint files without torch, as a finished run leaves them: for tests of what lists, judges and removes them."""

import json
import struct
from dataclasses import replace

from fake_sweep import STEPS_PER_EPOCH, FakeSweep

from seresnet.checkpoint_files import Header, digest_of, metadata
from seresnet.durable import json_bytes
from seresnet.run_folder import CheckpointName, RunFolder
from seresnet.tensor_file import state_digest_of


def payload_of(header: Header, value: float) -> bytes:
    """A file of safetensors with one tensor of 64 numbers."""
    entries = {
        "__metadata__": metadata(header, {"step": header.step}),
        "model/w": {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]},
    }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + struct.pack("<64f", *[value] * 64)


def save(folder: RunFolder, header: Header) -> CheckpointName:
    payload = payload_of(header, header.step)
    name = CheckpointName(generation=header.generation, step=header.step, digest=digest_of(payload))
    (folder.checkpoints / str(name)).write_bytes(payload)
    return name


def finish_with_checkpoints(sweep: FakeSweep, arm: str, seed: int) -> dict[str, CheckpointName]:
    """A finished run of two attempts: what retention leaves, by what each file is. The second attempt began with `base`."""
    folder = sweep.of(arm, seed)
    done = sweep.finish(arm, seed)
    for path in folder.checkpoints.iterdir():
        path.unlink()
    step = STEPS_PER_EPOCH
    names = {"base": save(folder, Header(generation=1, step=2 * step, epoch_boundary=True))}
    names["best"] = save(folder, Header(generation=2, step=3 * step, epoch_boundary=True, best=True))
    word = str(names["best"])
    names["older"] = save(folder, Header(generation=2, step=5 * step, epoch_boundary=True, best_so_far=word))
    names["final"] = save(folder, Header(generation=2, step=done.step, epoch_boundary=True, final=True, best_so_far=word))
    sweep.attempt(arm, seed, "finished", generation=2)
    claim = json.loads(folder.claim(2).read_text())
    folder.claim(2).write_bytes(json_bytes({**claim, "base": str(names["base"])}))
    digest = state_digest_of((folder.checkpoints / str(names["final"])).read_bytes())
    folder.result.unlink()
    replace(done, state_digest=digest, attempts=2).write(folder)
    return names
