"""What a run's folder holds and whether it is what it should be: everything that can be told without torch and without changing a byte.

Showing it is checkpoint.py's job, mending repair.py's. One invariant: a file counts as good only where its own bytes prove it, by a digest
that its name holds.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from seresnet import attempts, cleaned, journal, replay
from seresnet.attempts import Claim, read_claims
from seresnet.checkpoint_files import candidates, fork_again
from seresnet.config_file import config_from_dict
from seresnet.durable import DISK, parse_json
from seresnet.errors import CheckpointError, ConfigError, ToolkitError
from seresnet.file_look import FileLook, look_at_files, names_in_log, prove
from seresnet.journal import EpochRecord
from seresnet.pinning import expected_id
from seresnet.replay import Replay
from seresnet.run_folder import CheckpointName, RunFolder, RunRecord, TrainResult
from seresnet.tensor_file import state_digest_of


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is not as it should be. is_damage: a start or a table would be other than it was."""

    file: str  # below the run's folder
    what: str
    meaning: str
    fix: str
    is_damage: bool = True

    def __str__(self) -> str:
        return f"{self.file}: {self.what}. {self.meaning} {self.fix}".rstrip()


@dataclass(kw_only=True)
class RunLook:
    """All of one run's folder."""

    folder: RunFolder
    files: list[FileLook]
    claims: list[Claim]
    record: RunRecord | None
    result: TrainResult | None
    epochs: list[EpochRecord]
    replays: list[Replay]
    findings: list[Finding] = field(default_factory=list)
    unlisted: str = ""  # why ckpt/ or ckpt/bad/ cannot be listed: then nothing is known of its files

    @property
    def is_done(self) -> bool:
        """Whether it has trained as far as it shall."""
        return self.result is not None and self.record is not None and self.result.epochs >= _epochs(self.record)

    @property
    def had_files(self) -> bool:
        """Whether there is, or must have been, a checkpoint: then no start begins at step 0."""
        is_fork = self.record is not None and self.record.parent is not None
        return (
            is_fork or any(look.condition not in ("foreign", "temp") for look in self.files) or bool(self.claims and self.claims[-1].base)
        )

    @property
    def can_be_good(self) -> bool:
        """Whether repair will find a checkpoint to leave where it is, or to bring back."""
        proved = (look for look in self.files if look.condition in ("ok", "renamed"))
        return any(not look.is_set_aside or str(look.name) not in self.suspects for look in proved)

    @property
    def good(self) -> dict[CheckpointName, FileLook]:
        """The checkpoints that a start may take."""
        return {look.name: look for look in self.files if look.condition == "ok" and not look.is_set_aside and look.name is not None}

    @property
    def suspects(self) -> frozenset[str]:
        """What a replay sets aside on purpose, by name."""
        return frozenset(name for entry in self.replays for name in entry.suspects)

    @property
    def order(self) -> list[CheckpointName]:
        """Good checkpoints as a start would try them."""
        newest = self.claims[-1] if self.claims else None
        return candidates(self.good, newest if newest is not None and newest.owner is not None else None)

    @property
    def steps_per_epoch(self) -> int | None:
        last = self.epochs[-1] if self.epochs else self.result
        if last is None:
            return None
        epoch = last.epochs if isinstance(last, TrainResult) else last.epoch
        return last.step // epoch if epoch > 0 and last.step >= epoch and last.step % epoch == 0 else None

    @property
    def resume(self) -> str:
        """Where the next start goes on from."""
        if self.result is not None and self.is_done:
            return f"nothing to resume: finished after {self.result.epochs} epochs"
        cut = self.replays[-1] if self.replays else None
        if cut is not None and cut.outcome is None and not cut.is_rewound:
            return f"a start goes back to step {cut.from_step} and replays from there: {cut.what} at step {cut.step}"
        if self.order:
            return f"a start goes on at step {self.order[0].step} from ckpt/{self.order[0]}"
        if self.unlisted:
            return "nobody can tell where a start goes on: ckpt/ cannot be read"
        return "a start stops with an error: no checkpoint can be trusted" if self.had_files else "a start begins at step 0"


def inspect(folder: RunFolder) -> RunLook:
    """Look at everything; raises nothing for what files hold."""
    findings: list[Finding] = []
    record, result, claims = _read_record(folder, findings), _read_result(folder, findings), _read_claims(folder, findings)
    files, unlisted = _read_files(folder, claims, findings)
    look = RunLook(
        folder=folder,
        files=files,
        unlisted=unlisted,
        claims=claims,
        record=record,
        result=result,
        epochs=_read_journal(folder, findings),
        replays=_replays(folder, findings),
    )
    found = [*_of_files(look), *_of_absence(look), *_of_claims(look), *findings, *_of_journal(look), *_of_result(look), *_of_cleaning(look)]
    look.findings = sorted(found, key=lambda finding: not finding.is_damage)
    return look


def _read_files(folder: RunFolder, claims: list[Claim], findings: list[Finding]) -> tuple[list[FileLook], str]:
    found, unlisted = [], ""
    for place, is_set_aside in ((folder.checkpoints, False), (folder.set_aside, True)):
        try:
            found += look_at_files(place, is_set_aside)
        except OSError as error:
            unlisted = _why(error)
            file, meaning = place.relative_to(folder.path).as_posix(), "Nothing is known of its checkpoints, and no start gets past it."
            findings.append(Finding(file=file, what=unlisted, meaning=meaning, fix="Make it readable, then verify again."))
            break  # what lies below it cannot be read either
    if any(item.condition == "unproven" for item in found):
        found = prove(found, names_in_log(folder.log) | bases(claims).keys())
    return found, unlisted


def _of_cleaning(look: RunLook) -> Iterator[Finding]:
    """What is gone on purpose, so that nobody looks for it."""
    known = None if look.unlisted else cleaned.read(look.folder)
    missing = cleaned.gone(look.folder) if known else []
    if known and missing:
        size = sum(known.files[name] for name in missing) / 1e6
        what = f"{len(missing)} checkpoint{'s are' if len(missing) > 1 else ' is'} gone by intention, {size:,.1f} MB ({known})"
        yield Finding(file="cleaned.json", what=what, meaning="Nothing is lost that a table needs.", fix="", is_damage=False)


def _of_absence(look: RunLook) -> Iterator[Finding]:
    """No checkpoint at all, where there must have been one."""
    if look.unlisted or look.is_done or any(item.condition not in ("foreign", "temp") for item in look.files):
        return
    if look.record is not None and look.record.parent is not None:
        meaning = f"Its state began as that of {look.record.parent}, so a start is refused."
        yield Finding(file="ckpt", what="holds no checkpoint", meaning=meaning, fix=f"{fork_again(look.folder, look.record.parent)}.")
    elif look.epochs:
        count = len(look.epochs)
        what = f"{count} epoch{'s are' if count > 1 else ' is'} written down, and there is no checkpoint"
        meaning = "The run was ended before its first save, or its checkpoints are gone."
        fix = "Restore ckpt/ from a backup, if there is one."
        yield Finding(file="ckpt", what=what, meaning=meaning, fix=fix, is_damage=_must_have_saved(look))


def _must_have_saved(look: RunLook) -> bool:
    """Each best on validation is saved before its epoch is written down, and the rest every checkpoint_every_s."""
    train = look.record.config.get("train", {}) if look.record else {}
    interval_s = train.get("checkpoint_every_s") if isinstance(train, dict) else None
    seconds = sum(record.seconds for record in look.epochs)
    is_late = isinstance(interval_s, int | float) and seconds > 2 * interval_s
    return is_late or (len(look.epochs) > 1 and any(record.val_top1_pct is not None for record in look.epochs))


def _of_files(look: RunLook) -> Iterator[Finding]:
    good = {str(name) for name in look.good}
    sets_aside = (
        "`repair` sets it aside." if look.can_be_good else "No checkpoint is good, so `repair` moves none: restore one from a backup."
    )
    for item in look.files:
        file = f"ckpt/{'bad/' if item.is_set_aside else ''}{item.path.name}"
        if item.is_set_aside:
            yield from _of_set_aside(look, item, file, good)
        elif item.condition == "damaged":
            yield Finding(file=file, what=item.fault, meaning=f"{_sentence(look.resume)}.", fix=sets_aside)
        elif item.condition == "renamed" and str(item.name) not in good:
            yield Finding(file=file, what=item.fault, meaning="No start finds it.", fix="`repair` gives it its name.")
        elif item.condition == "newer":
            yield Finding(file=file, what=item.fault, meaning="A start that meets it stops with this error.", fix="")
        elif item.condition == "unreadable":
            fix = "Look at the file system, then verify again; `repair` leaves it alone."
            yield Finding(file=file, what=item.fault, meaning=f"As it is now: {look.resume}.", fix=fix)
        elif item.condition in ("unproven", "temp", "renamed"):
            what = "a save that was not committed" if item.condition == "temp" else item.fault
            yield Finding(file=file, what=what, meaning="No start looks at it.", fix="", is_damage=False)
        elif item.condition == "foreign":
            yield Finding(file=file, what="not a checkpoint", meaning="Nothing looks at it.", fix="", is_damage=False)


def _of_set_aside(look: RunLook, item: FileLook, file: str, good: set[str]) -> Iterator[Finding]:
    if item.condition not in ("ok", "renamed") or str(item.name) in good:
        yield Finding(file=file, what=item.fault or "set aside", meaning="Kept as evidence.", fix="", is_damage=False)
    elif str(item.name) in look.suspects:
        what = "set aside by a replay: it may hold wrong bits of bad hardware"
        yield Finding(file=file, what=what, meaning="It stays there on purpose.", fix="", is_damage=False)
    else:
        yield Finding(file=file, what="is good, and was set aside", meaning="No start finds it.", fix="`repair` brings it back.")


def _of_claims(look: RunLook) -> Iterator[Finding]:
    newest = look.claims[-1] if look.claims else None
    if newest is None or newest.base is None or newest.base in look.suspects or look.is_done or look.unlisted:
        return
    if any(name.generation == newest.generation for name in look.good):
        return  # it starts from these, and retention deletes a base that three of them have made old
    if newest.base not in {item.path.name for item in look.files if not item.is_set_aside}:
        file, what = f"attempts/{newest.generation:06d}.json", f"names {newest.base} as its base, and ckpt/ has no such file"
        yield Finding(file=file, what=what, meaning=f"{_sentence(look.resume)}.", fix="Restore it from a backup, if there is one.")


def _read_claims(folder: RunFolder, findings: list[Finding]) -> list[Claim]:
    try:
        found = read_claims(folder)
        ends = {claim.generation: attempts.read_end(folder, claim.generation) for claim in found}
    except OSError as error:
        findings.append(Finding(file="attempts", what=_why(error), meaning="Nobody can tell who owns the run.", fix="Make it readable."))
        return []
    for claim in found:
        is_newest = claim is found[-1]
        if claim.owner is None:
            meaning = "A start watches its beat for 90 s before it takes over." if is_newest else "A later attempt has taken over."
            file = f"attempts/{claim.generation:06d}.json"
            findings.append(
                Finding(file=file, what="not a claim that can be read", meaning=meaning, fix="It cannot be mended.", is_damage=is_newest)
            )
        if ends[claim.generation] is None and folder.end(claim.generation).exists():
            file, fix = f"attempts/{claim.generation:06d}.end.json", "Move it away: the next start writes what it can tell."
            findings.append(Finding(file=file, what="not an end record", meaning="How the attempt ended is unknown.", fix=fix))
    return found


def _read_record(folder: RunFolder, findings: list[Finding]) -> RunRecord | None:
    if _has_no_record_yet(folder):
        meaning, fix = "Its only start was ended before it wrote it, and nothing was trained.", "Start the run again as it was started."
        findings.append(Finding(file="run.yaml", what="is not written yet", meaning=meaning, fix=fix, is_damage=False))
        return None
    try:
        record = RunRecord.read(folder)
        config = config_from_dict(record.config, str(folder.run_yaml))
        wanted = expected_id(record, config)
    except ToolkitError as error:
        findings.append(Finding(file="run.yaml", what=_short(error, folder.run_yaml), meaning="No start gets past it.", fix=""))
        return None
    if record.run_id != wanted:
        what = f"says run {record.run_id}, its config and parent make {wanted}"
        findings.append(
            Finding(file="run.yaml", what=what, meaning="A start is refused.", fix="Restore the config that it was started with.")
        )
    return record


def _has_no_record_yet(folder: RunFolder) -> bool:
    """Whether every start was ended between its claim and run.yaml, after which come what it runs on, checkpoints and epochs."""
    try:
        saved = [CheckpointName.parse(name) for place in (folder.checkpoints, folder.set_aside) for name in DISK.names(place)]
        is_introduced = any(name.endswith(".env.json") for name in DISK.names(folder.attempts))
        is_later = is_introduced or DISK.names(folder.metrics) or any(name is not None and name.generation > 0 for name in saved)
        return not (is_later or folder.run_yaml.is_symlink() or folder.run_yaml.exists() or folder.result.exists())
    except OSError:
        return False


def _read_result(folder: RunFolder, findings: list[Finding]) -> TrainResult | None:
    try:
        return TrainResult.read(folder)
    except ToolkitError as error:
        meaning = "Status and tables call the run unreadable, and no start goes past it."
        findings.append(Finding(file="result.json", what=_short(error, folder.result), meaning=meaning, fix=""))
        return None


def _read_journal(folder: RunFolder, findings: list[Finding]) -> list[EpochRecord]:
    try:
        records, bad = journal.read_noting(folder)
    except OSError as error:
        findings.append(Finding(file="metrics", what=_why(error), meaning="There are no curves.", fix="Make it readable."))
        return []
    for name, count in sorted(bad.items()):
        torn = len(torn_lines((folder.metrics / name).read_bytes()))
        fix = "`repair` takes torn lines out and keeps a copy." if torn else "Another version may have written it; nothing to mend here."
        what = f"{count} line{'s' if count > 1 else ''} that {'are' if count > 1 else 'is'} torn or foreign"
        findings.append(Finding(file=f"metrics/{name}", what=what, meaning="Readers pass over it.", fix=fix, is_damage=torn > 0))
    return records


def torn_lines(payload: bytes) -> list[bytes]:
    """Lines of a journal that are not even JSON."""
    return [line for line in payload.splitlines() if line.strip() and not _is_json(line)]


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(parse_json(line), dict)
    except ValueError:
        return False


def _of_journal(look: RunLook) -> Iterator[Finding]:
    """Epochs without a gap from the first to the newest checkpoint; the last one may still have to be evaluated."""
    size = look.steps_per_epoch
    if size is None or not (look.order or look.result):
        return
    parent = look.record.parent if look.record else None
    first = parent.step // size + 1 if parent else 1
    last = (look.order[0].step - 1) // size if look.order else 0
    if look.result is not None and not _is_replayed_behind(look, look.result):
        last = max(last, look.result.epochs)
    missing = sorted(set(range(first, last + 1)) - {record.epoch for record in look.epochs})
    if missing:
        text = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
        meaning = "Training goes on all the same; curves, and best-on-test, lack them."
        yield Finding(file="metrics", what=f"has no record of epoch {text}", meaning=meaning, fix="Restore metrics/ from a backup.")


def _is_replayed_behind(look: RunLook, result: TrainResult) -> bool:
    """Whether a run that shall train longer has gone back to before its older result: the epochs between are written down again."""
    return not look.is_done and any(entry.from_step < result.step for entry in look.replays)


def _of_result(look: RunLook) -> Iterator[Finding]:
    result = look.result
    if result is None:
        return
    if look.record is not None and result.run_id != look.record.run_id:
        what, fix = f"is of run {result.run_id}, run.yaml of {look.record.run_id}", "Move it away to have it made again."
        yield Finding(file="result.json", what=what, meaning="Tables leave the run out.", fix=fix)
    finals = [item for name, item in look.good.items() if name.step == result.step and item.header is not None and item.header.final]
    if not finals:
        what = f"its state_digest was not checked: there is no final checkpoint of step {result.step}"
        yield Finding(file="result.json", what=what, meaning="The numbers stand.", fix="", is_damage=False)
    elif result.state_digest not in {_digest_or_fault(item.path) for item in finals}:
        what = f"its state_digest is that of no final checkpoint of step {result.step}"
        fix = "Move result.json away: the next start makes it again from the checkpoint."
        yield Finding(file="result.json", what=what, meaning="Result and checkpoint are of two trainings.", fix=fix)


def _digest_or_fault(path: Path) -> str:
    try:
        return state_digest_of(path.read_bytes())
    except (OSError, CheckpointError) as error:
        return str(error)


def _replays(folder: RunFolder, findings: list[Finding]) -> list[Replay]:
    try:
        return replay.read_replays(folder)
    except OSError as error:
        findings.append(Finding(file="attempts", what=_why(error), meaning="Which files a replay set aside is unknown.", fix=""))
        return []


def _epochs(record: RunRecord) -> int:
    try:
        return record.epochs
    except ConfigError:
        return 2**31


def _why(error: OSError) -> str:
    return f"cannot be read ({error.strerror or error})"


def _short(error: ToolkitError, path: Path) -> str:
    return " ".join(str(error).replace(f"{path}: ", "").split()).rstrip(".")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def bases(claims: list[Claim]) -> Mapping[str, list[int]]:
    """File name -> the attempts that started from it."""
    found: dict[str, list[int]] = {}
    for claim in claims:
        if claim.base is not None:
            found.setdefault(claim.base, []).append(claim.generation)
    return found
