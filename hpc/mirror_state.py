"""wandb/state.json of a run: what its mirror is doing, written by the mirror and shown by status.

Never read to decide what is published; that is the cursor's. One invariant: a mirror that was killed does not look alive for longer than
STALE_S, and where its processes can be seen not at all.
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from hpc.mirror_cursor import wandb_folder
from hpc.mirror_process import Mode
from hpc.paths import WandbMode
from seresnet import claims
from seresnet.attempts import Owner
from seresnet.durable import parse_json, write_json_durably
from seresnet.run_folder import RunFolder

SCHEMA = 1
#: A mirror writes when something changes, but not more often than this, and at least every BEAT_S.
WRITE_EVERY_S = 20.0
BEAT_S = 60.0
#: A mirror elsewhere that has not written for so long is gone. Clocks of nodes may differ by some of it.
STALE_S = 4 * BEAT_S
#: Epochs are published once a checkpoint covers them, which is once a minute. Later than this is behind.
LATE_S = 180.0

Word = Literal["online", "offline", "behind", "off"]


@dataclass(frozen=True, kw_only=True)
class MirrorState:
    """What a mirror says about one run."""

    mode: Literal["online", "offline", "off"]
    epoch: int = 0  # newest that the server, or an offline file, is known to have
    why: str | None = None  # it is not online, or the server is not heard of
    address: str | None = None  # of the W&B run
    is_over: bool = False  # the mirror has closed it and gone
    time: float = 0.0
    host: str | None = None
    boot_id: str | None = None
    pid_namespace: str | None = None
    pid: int = 0
    process_started: str | None = None

    @classmethod
    def read(cls, folder: RunFolder) -> "MirrorState | None":
        """None where there is none, or one that this version cannot read."""
        try:
            value = parse_json(state_path(folder).read_bytes())
            if value.pop("schema") != SCHEMA:
                return None
            state = cls(**value)
            return state if state.mode in ("online", "offline", "off") and type(state.epoch) is int and float(state.time) >= 0 else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, folder: RunFolder) -> None:
        """Replace the file durably. Raises OSError."""
        write_json_durably(state_path(folder), {"schema": SCHEMA, **asdict(self)})

    def signed(self, owner: Owner) -> "MirrorState":
        """The state with whose it is, and when."""
        return replace(
            self, time=time.time(), host=owner.host, boot_id=owner.boot_id, pid_namespace=owner.pid_namespace,
            pid=owner.pid, process_started=owner.process_started,
        )  # fmt: skip

    def lives(self, here: Owner, now: float) -> bool:
        """Whether the mirror that wrote this still works on the run."""
        if self.is_over:
            return False
        places = [(each.host, each.boot_id, each.pid_namespace) for each in (self, here)]
        if places[0] == places[1] and None not in places[0]:
            return not claims.is_dead(self.pid, self.process_started)
        return abs(now - self.time) < STALE_S


class StateFile:
    """The state of one run in the hands of its mirror: written when something but the epoch changed, or when it is time."""

    def __init__(self, folder: RunFolder, owner: Owner) -> None:
        self._folder, self._owner = folder, owner
        self._last: MirrorState | None = None
        self._written = float("-inf")

    def note(self, **changes: Any) -> None:
        """Take over the changes. Raises nothing: the cursor beside the file says that the folder cannot be written."""
        before = self._last or MirrorState(mode="offline")
        after, age = replace(before, **changes), time.monotonic() - self._written
        is_news = self._last is None or replace(after, epoch=before.epoch) != before
        if not is_news and age < (WRITE_EVERY_S if after != before else BEAT_S):
            return
        self._last, self._written = after, time.monotonic()
        if after.mode == "offline" and self._is_taken(after.epoch):
            return
        with contextlib.suppress(OSError):
            after.signed(self._owner).write(self._folder)

    def settle(self, mode: Mode | None, epoch: int) -> None:
        """The run is wholly published; say so where its mirror was killed right before it could."""
        found = MirrorState.read(self._folder)
        if found is not None and not found.is_over and mode in ("online", "offline"):
            self.note(mode=mode, epoch=epoch, address=found.address, is_over=True)

    def _is_taken(self, epoch: int) -> bool:
        """Whether a mirror on a login node uploads what we keep offline, or has done so: then its word is the better one."""
        theirs = MirrorState.read(self._folder)
        if theirs is None or theirs.mode != "online":
            return False
        return theirs.lives(self._owner, time.time()) or (theirs.is_over and theirs.epoch >= epoch)


def state_path(folder: RunFolder) -> Path:
    return wandb_folder(folder) / "state.json"


@dataclass(frozen=True, kw_only=True)
class MirrorView:
    """How a run stands with W&B, as status shows it."""

    word: Word
    behind: int  # epochs of the record that W&B, or the offline file, is not known to have
    why: str | None
    address: str | None


def view(state: MirrorState, epoch: int, epoch_s: float | None, here: Owner, now: float) -> MirrorView:
    """epoch: of the record; epoch_s: what one takes."""
    behind, lives = max(0, epoch - state.epoch), state.lives(here, now)

    def shown(word: Word, why: str | None = state.why) -> MirrorView:
        return MirrorView(word=word, behind=behind, why=why, address=state.address)

    if state.mode == "off":
        return shown("off")
    if not lives and not state.is_over:
        return shown("off", "its mirror was killed")
    is_late = behind > 0 and (state.is_over or behind * (epoch_s or 0.0) > LATE_S)
    if is_late or (state.mode == "online" and state.why and behind):
        return shown("behind")
    return shown(state.mode)


def counts(views: Sequence[MirrorView]) -> dict[str, int]:
    """How many runs stand how."""
    words: tuple[Word, ...] = ("online", "behind", "offline", "off")
    return {word: number for word in words if (number := sum(view.word == word for view in views))}


def to_json(view: MirrorView | None) -> dict[str, Any] | None:
    return None if view is None else {"state": view.word, "behind": view.behind, "why": view.why, "address": view.address}


def line(mode: WandbMode, views: dict[str, MirrorView]) -> str | None:
    """One line for a sweep: "W&B: 2 online, 1 behind (se-seed0 by 12 epochs: ...)"; None where nothing was ever published.

    views: by the run's slug.
    """
    if not views:
        return "W&B: disabled by the sweep" if mode == "disabled" else None
    parts = []
    for word, number in counts(list(views.values())).items():
        slug, first = next((slug, view) for slug, view in views.items() if view.word == word)
        more = f" and {number - 1} more" if number > 1 else ""
        by = f" by {first.behind} epoch{'s' if first.behind != 1 else ''}" if first.behind and word in ("behind", "off") else ""
        why = f": {first.why}" if first.why else ""
        parts.append(f"{number} {word}" + (f" ({slug}{by}{why}{more})" if word != "online" and (by or why) else ""))
    address = next((view.address for view in views.values() if view.address), None)
    return f"W&B: {', '.join(parts)}" + (f"; {address.rpartition('/runs/')[0] or address}" if address else "")


def needs_upload(views: dict[str, MirrorView]) -> bool:
    """Whether a run's rows are not all on the server and nobody is at it."""
    return any(view.word != "online" for view in views.values())
