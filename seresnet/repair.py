"""Mending a run's folder as a careful person would: bad files aside, good ones back, torn lines out; and saying what cannot be mended.

What is wrong is inspection.py's word. Two invariants: no checkpoint is ever deleted, and only what is touched is what generations have left
whose owner is proven gone, so that a run that is started meanwhile loses nothing.
"""

import secrets
from dataclasses import dataclass
from pathlib import Path

from seresnet import claims
from seresnet.durable import DISK, write_durably
from seresnet.file_look import FileLook
from seresnet.inspection import RunLook, inspect, torn_lines
from seresnet.run_folder import CheckpointName, RunFolder


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What was done (or would be), what was left and why, and the folder as it is now."""

    proof: str | None  # why nobody owns the run
    done: tuple[str, ...]
    left: tuple[str, ...]
    look: RunLook


def repair(folder: RunFolder, *, dry_run: bool, observe_s: float = 90.0) -> Repair:
    """Mend what can be. Raises OwnedElsewhereError while the newest owner is not proven gone, and OSError."""
    proof = claims.proof_of_end(folder, observe_s)
    hand = _Hand(inspect(folder), dry_run, newest=proof[0] if proof else 0)
    hand.bring_back()
    hand.tidy_temps()
    hand.set_aside()
    hand.mend_journals()
    look = hand.look if dry_run else inspect(folder)
    # Where no file is good, the hand has said of all of them together what there is to do.
    said = look.folder.checkpoints.name if not look.can_be_good else "\0"
    damage = [finding for finding in look.findings if finding.is_damage and not (hand.left and finding.file.startswith(f"{said}/"))]
    unmended = [] if dry_run else [str(finding) for finding in damage]
    return Repair(proof=proof[1] if proof else None, done=tuple(hand.done), left=(*hand.left, *unmended), look=look)


class _Hand:
    """The acts, each of which writes down what it did."""

    def __init__(self, look: RunLook, dry_run: bool, newest: int) -> None:
        self.look, self.dry_run, self.newest = look, dry_run, newest
        self.folder = look.folder
        self.good = {str(name) for name in look.good}
        self.done: list[str] = []
        self.left: list[str] = []

    def bring_back(self) -> None:
        """Files whose bytes are proven and whose place is empty get their names, but for those that a replay has set aside."""
        for item in self.look.files:
            is_whole = item.condition in ("ok", "renamed") or (item.condition == "temp" and item.header is not None)
            if not is_whole or item.name is None or str(item.name) in self.good:
                continue
            if item.is_set_aside and str(item.name) in self.look.suspects:
                self.left.append(f"ckpt/bad/{item.path.name} stays: a replay set it aside, because it may hold wrong bits of bad hardware")
            elif 0 < self.newest < item.name.generation:
                self.left.append(f"{self._place(item)} stays: generation {item.name.generation} is above every claim; whose is it?")
            else:
                self._move(item.path, self.folder.checkpoints / str(item.name), "brought back")
                self.good.add(str(item.name))

    def tidy_temps(self) -> None:
        """Temp files of saves whose writer is gone; what they hold was never called durable."""
        for item in self.look.files:
            inner = CheckpointName.parse(item.path.name[1:].rsplit(".", 2)[0]) if item.condition == "temp" and not item.header else None
            if inner is not None and inner.generation <= self.newest:
                self.done.append(f"removed {self._place(item)}, a save that was not committed")
                if not self.dry_run:
                    DISK.unlink(item.path)

    def set_aside(self) -> None:
        """Damaged files go to bad/, but only where a good one stays: an emptied folder would look like a run that never began."""
        damaged = [item for item in self.look.files if item.condition == "damaged" and not item.is_set_aside]
        for item in damaged if self.good else ():
            target = self.folder.set_aside / item.path.name
            if target.exists():
                target = target.with_name(f"{target.name}.{secrets.token_hex(4)}")
            self._move(item.path, target, "set aside")
        if damaged and not self.good:
            newest = max(damaged, key=lambda item: (item.name.generation, item.name.step) if item.name else (-1, -1))
            self.left.append(
                f"no checkpoint can be trusted, so none is moved. Restore one from a backup into {self.folder.checkpoints}, "
                f"best of all {newest.path.name}. {self._start_over()}"
            )

    def _start_over(self) -> str:
        away = f"move {self.folder.checkpoints} and {self.folder.attempts} away"
        parent = self.look.record.parent if self.look.record else None
        if parent is None:
            return f"To start this run over: {away}"
        return f"A fork has no step 0: to begin again, {away} and give --fork PARENT/ckpt/{parent.checkpoint}"

    def mend_journals(self) -> None:
        """Torn lines go; the file as it was stays beside it, under a name that no reader of journals looks at."""
        for name in DISK.names(self.folder.metrics):
            path = self.folder.metrics / name
            is_own = name.startswith("g") and name.endswith(".jsonl") and name[1:-6].isdigit() and int(name[1:-6]) <= self.newest
            payload = path.read_bytes() if is_own else b""
            torn = set(torn_lines(payload))
            if not torn:
                continue
            copy = path.with_name(f"{name}.torn-{secrets.token_hex(4)}")
            self.done.append(
                f"took {len(torn)} torn line{'s' if len(torn) > 1 else ''} out of metrics/{name}; as it was: metrics/{copy.name}"
            )
            if not self.dry_run:
                write_durably(copy, payload)
                kept = [line for line in payload.splitlines() if line.strip() and line not in torn]
                write_durably(path, b"".join(line + b"\n" for line in kept))

    def _move(self, source: Path, target: Path, word: str) -> None:
        self.done.append(f"{word}: {self._below(source)} -> {self._below(target)}")
        if self.dry_run:
            return
        DISK.make_folder(target.parent)
        DISK.rename(source, target)
        for place in {source.parent, target.parent}:
            DISK.sync_folder(place)

    def _place(self, item: FileLook) -> str:
        return self._below(item.path)

    def _below(self, path: Path) -> str:
        return path.relative_to(self.folder.path).as_posix()
