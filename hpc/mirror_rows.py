"""What W&B is told of a run: its rows, its summary, its config, its group and names. Made from the run folder; imports no wandb.

One invariant: nothing leaves here that looks like a key, however it came into the folder.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from hpc.paths import Plan, PlannedFolder, set_aside_folders
from seresnet import attempts, journal
from seresnet.config import KeyClass, RunConfig, iter_keys
from seresnet.durable import canonical_json, parse_json
from seresnet.errors import ConfigError
from seresnet.exits import after_ending
from seresnet.journal import EpochRecord
from seresnet.run_folder import CheckpointName, RunFolder, RunRecord, TrainResult
from seresnet.strict_yaml import hide_secrets

#: W&B's own limits.
_LONGEST_TAG, _LONGEST_NAME = 64, 128
#: Facts of an attempt that are part of the config; 40 hex digits of a commit are no key.
_FACTS = ("commit", "code_digest", "versions", "device")


def durable_records(folder: RunFolder, is_finished: bool) -> list[EpochRecord]:
    """The merged records that no resume can take back: up to the newest checkpoint, or all once there is a result.

    Of a program all that it wrote: what it saves is its own business.
    """
    records = journal.read(folder)
    if is_finished or (records and "program" in RunRecord.read(folder).config):
        return records
    names = [CheckpointName.parse(path.name) for path in folder.checkpoints.glob("*.safetensors")]
    newest = max((name for name in names if name), default=None)
    return [record for record in records if newest and record.step <= newest.step]


def row(record: EpochRecord) -> dict[str, float]:
    """What W&B gets for an epoch; values that were not measured are left out.

    Twelve: what is compared, what explains a jump (lr, skipped steps, a new attempt), and what it cost. TFLOP/s and the share of a matmul
    are images_per_s times a constant of the network; the rest stays in the journal.
    """
    values = {
        "train/loss": record.train_loss,
        "train/top1_pct": record.train_top1_pct,
        "val/loss": record.val_loss,
        "val/top1_pct": record.val_top1_pct,
        "test/loss": record.test_loss,
        "test/top1_pct": record.test_top1_pct,
        "lr": record.lr,
        "step": record.step,
        "attempt": record.generation,
        "skipped_steps": record.skipped_steps,
        "epoch_seconds": record.seconds,
        "images_per_s": record.images_per_s,
    }
    return {name: value for name, value in values.items() if value is not None}


def summary(result: TrainResult) -> dict[str, Any]:
    """The figures of the table, under the names of the table."""
    keys = ("last_test_top1_pct", "last_val_top1_pct", "val_chosen_test_top1_pct", "val_chosen_epoch", "best_on_test_top1_pct")
    more = ("best_on_test_epoch", "parameters", "attempts", "tier", "state_digest", "seconds")
    return {"ending": "finished"} | {key: value for key in (*keys, *more) if (value := getattr(result, key)) is not None}


def unfinished_summary(folder: RunFolder) -> dict[str, Any]:
    """The ending and attempts of a run without its result."""
    return {"ending": closing_word(folder), "attempts": attempts.newest_generation(folder)}


def closing_word(folder: RunFolder) -> str:
    """ "preempting" for a run that goes on by itself, else the ending that needs a person."""
    generation = attempts.newest_generation(folder)
    end = attempts.read_end(folder, generation) if generation else None
    # finished: of an earlier number of epochs, or it would have been closed as complete.
    return "preempting" if end is None or after_ending(end.ending) in ("interrupted", "finished") else end.ending


def run_config(folder: RunFolder) -> dict[str, Any]:
    """The resolved identity keys, and what the newest attempt says about its code and machine. Raises ConfigError for a key in it."""
    record = RunRecord.read(folder)
    config = _identity(record)
    config["epochs"], config["run_id"] = record.config["train"]["epochs"], record.run_id
    _refuse_keys(folder, config)
    facts = _facts(folder)
    return config | {key: facts[key] for key in _FACTS if key in facts}


def group(folder: RunFolder, planned: PlannedFolder) -> str:
    """The arm, and six digits of the config without its seed: W&B averages a group, and one name in two sweeps may be two recipes."""
    config = _identity(RunRecord.read(folder))
    config.get("train", {}).pop("seed", None)
    digest = hashlib.sha256(canonical_json(config).encode()).hexdigest()[:6]
    arm = planned.arms[0] if planned.arms else planned.slug.rpartition("-seed")[0] or planned.slug
    return f"{arm[: _LONGEST_NAME - 7]}-{digest}"


def tags(plan: Plan, planned: PlannedFolder) -> list[str]:
    """The sweep and the arms, as W&B allows them."""
    return list(dict.fromkeys(name[:_LONGEST_TAG] for name in (plan.sweep, *planned.arms)))


def wandb_id(plan: Plan, run_id: str, folder: RunFolder) -> str:
    """The server never takes a step twice, so a run that was set aside and trained again needs another id."""
    again = len(set_aside_folders(folder))
    return f"{run_id}-{plan.salt}{f'-{again + 1}' if again else ''}"


def refuse_keys(folder: RunFolder, texts: Iterable[str | None]) -> None:
    """Raises ConfigError if a name that W&B would get looks like a key."""
    _refuse_keys(folder, {"a name, tag or setting of W&B": [text for text in texts if text]})


def _identity(record: RunRecord) -> dict[str, Any]:
    config: dict[str, Any] = {}
    for dotted, rule, _, _ in iter_keys(RunConfig()):
        section, name = dotted.split(".")
        if rule.key_class is KeyClass.IDENTITY and name in record.config.get(section, {}):
            config.setdefault(section, {})[name] = record.config[section][name]
    return config


def _facts(folder: RunFolder) -> dict[str, Any]:
    """Of the newest attempt: its claim's, and what rank 0 wrote when it started."""
    claim = attempts.newest_claim(folder)
    if claim is None:
        return {}
    facts = dict(claim.owner.facts) if claim.owner else {}
    try:
        found = parse_json(folder.environment(claim.generation).read_text())
        return facts | (found if isinstance(found, dict) else {})
    except (OSError, ValueError):
        return facts


def _refuse_keys(folder: RunFolder, value: Any, key: str = "") -> None:
    if isinstance(value, Mapping):
        for name, item in value.items():
            _refuse_keys(folder, item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_keys(folder, item, key)
    elif isinstance(value, str) and hide_secrets(value) != value:
        raise ConfigError(f"{folder.path}: {key} looks like a W&B key and is not sent. Take it out, and have it revoked.")
