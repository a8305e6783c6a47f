"""result.json as somebody's own script writes it: a few numbers, made into the whole record that tables are built from.

docs/own-script.md is its contract. Nothing is written here. What the script does not say is taken from the journal that it kept. One
invariant: no number is made up; what neither says is None, or an empty list, or zero of something counted.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from seresnet import attempts, journal
from seresnet.durable import canonical_json, parse_json
from seresnet.errors import ConfigError
from seresnet.strict_yaml import nearest

if TYPE_CHECKING:
    from seresnet.run_folder import RunFolder, RunRecord

NEEDED = ("epochs", "last_test_top1_pct")
#: Each is a key of TrainResult, with its meaning.
OPTIONAL: Mapping[str, Any] = {
    "step": 0,
    "parameters": None,
    "multiply_adds": None,
    "data_name": "own data",
    "data_digest": "",
    "train_images": 0,
    "val_images": 0,
    "test_images": 0,
    "classes": [],
    "confusion": [],
    "train_loss": None,
    "last_test_loss": None,
    "last_val_top1_pct": None,
    "val_chosen_epoch": None,
    "val_chosen_val_top1_pct": None,
    "val_chosen_test_top1_pct": None,
    "seconds": 0.0,
    "state_digest": None,
}
_BEST = ("best_on_test_epoch", "best_on_test_top1_pct")
_CHOSEN = ("val_chosen_epoch", "val_chosen_val_top1_pct", "val_chosen_test_top1_pct")


def completed(
    value: Mapping[str, Any], folder: "RunFolder", record: "RunRecord", schema: int, epochs: Sequence[journal.EpochRecord]
) -> dict[str, Any]:
    """The whole record of a script's result. Raises ConfigError, without the file's name, for a key that is missing or unknown.

    epochs: what its journal says; whether there is a result, and of how many epochs, does not depend on it.
    """
    known = (*NEEDED, *OPTIONAL, *_BEST)
    if missing := [key for key in NEEDED if key not in value]:
        raise ConfigError(f"has no {' and no '.join(missing)}. A program's result needs {' and '.join(NEEDED)}; see docs/own-script.md.")
    if unknown := [key for key in value if key not in known]:
        near, keys = nearest(unknown[0], known), ", ".join(known)
        raise ConfigError(f"{unknown[0]} is no key of a result. {f'Did you mean {near}?' if near else f'Keys: {keys}.'}")
    for group in (_BEST, _CHOSEN):
        if 0 < len([key for key in group if value.get(key) is not None]) < len(group):
            raise ConfigError(f"{' and '.join(group)} go together. Write all of them, or none.")
    train = record.config.get("train", {})
    newest = attempts.newest_generation(folder)
    runs_on = _environment(folder, newest)
    best = dict(zip(_BEST, (value["epochs"], value["last_test_top1_pct"]), strict=True))  # of what the script says, the only one
    given = {**OPTIONAL, **best, **_of_journal([one for one in epochs if _is_plausible(one)]), **value}
    return {
        **given,
        # Two results are taken for the same bits if they say the same of the same run.
        "state_digest": given["state_digest"] or hashlib.sha256(canonical_json([record.run_id, dict(value)]).encode()).hexdigest(),
        "run_id": record.run_id,
        "slug": record.slug,
        "attempts": newest,
        "tier": "T2" if record.marks else "T1",
        "world_size": train.get("ranks", 1),
        "device": str(runs_on.get("device", train.get("device"))),
        "amp": "own",
        "code_digest": str(runs_on.get("code_digest", "")),
        "commit": runs_on.get("commit"),
        "versions": runs_on.get("versions", {}),
        "parent": None,
        "averaged": False,
        "schema": schema,
    }


def _is_plausible(epoch: journal.EpochRecord) -> bool:
    return all(0 <= (percent or 0) <= 100 for percent in (epoch.test_top1_pct, epoch.val_top1_pct))


def _of_journal(epochs: Sequence[journal.EpochRecord]) -> dict[str, Any]:
    """What the lines that a script appended say of the whole run."""
    if not epochs:
        return {}
    last, best = epochs[-1], max(epochs, key=lambda record: (record.test_top1_pct, -record.epoch))
    chosen = max(
        (record for record in epochs if record.val_top1_pct is not None),
        key=lambda record: (record.val_top1_pct or 0.0, -record.epoch),
        default=None,
    )
    return {
        "step": last.step,
        "train_loss": last.train_loss,
        "last_test_loss": last.test_loss,
        "last_val_top1_pct": last.val_top1_pct,
        "val_chosen_epoch": chosen and chosen.epoch,
        "val_chosen_val_top1_pct": chosen and chosen.val_top1_pct,
        "val_chosen_test_top1_pct": chosen and chosen.test_top1_pct,
        "best_on_test_epoch": best.epoch,
        "best_on_test_top1_pct": best.test_top1_pct,
        "seconds": round(sum(record.seconds for record in epochs), 3),
    }


def _environment(folder: "RunFolder", generation: int) -> dict[str, Any]:
    try:
        found = parse_json(folder.environment(generation).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
