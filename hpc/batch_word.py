"""What the batch script saw of a job once srun had returned, as hpc/requeue.sh leaves it in the sweep's logs: an ending and a code.

It knows what a supervisor could not say: why the job was stopped where Python has no scontrol, and that the supervisor itself was
killed. One invariant: an ending that somebody else could tell is never changed by it.
"""

import dataclasses
from pathlib import Path

from hpc.paths import SweepFolder
from hpc.requeue import UNASKED, UNKNOWN_CANCELLER, budget_of
from seresnet import attempts
from seresnet.attempts import Claim, End
from seresnet.exits import AFTER_ENDING
from seresnet.run_folder import RunFolder


def known_end(folder: RunFolder, claim: Claim) -> End | None:
    """How an attempt ended: its record, and where that says `stopped`, or is missing, the batch script's word. Raises OSError."""
    end = attempts.read_end(folder, claim.generation)
    if end is not None and end.ending != "stopped":
        return end
    word = _word(folder, claim)
    if word is None:
        return end
    seen = UNKNOWN_CANCELLER if word == "cancelled" else word
    if end is not None:
        reason = (end.reason or UNASKED).replace(UNASKED, f"{seen}, as the batch script saw")
        return dataclasses.replace(end, ending=word, reason=reason, facts={**end.facts, "budget": _budget(word, end)})
    if attempts.read_rank_exit(folder, claim.generation).get("ending"):
        return None  # the next claimant takes the rank's own word
    return End(
        generation=claim.generation, ending=word, reason=f"its supervisor was killed; {seen}, as the batch script saw", inferred=True
    )


def record_killed(folder: RunFolder) -> None:
    """Write down the end of the newest attempt if its supervisor could not, before the next claimant would guess it. Raises OSError."""
    claim = attempts.newest_claim(folder)
    if claim is None or attempts.read_end(folder, claim.generation) is not None:
        return
    if (end := known_end(folder, claim)) is not None:
        attempts.write_inferred_end(folder, claim.generation, end.ending, reason=end.reason, proof="the batch script saw it")


def word_file(folder: RunFolder, claim: Claim) -> Path | None:
    """Where the batch script of this attempt leaves its word, whether it did or not; None for an attempt outside a job."""
    owner = claim.owner
    if owner is None or (job_id := owner.array_job_id or owner.raw_job_id) is None:
        return None
    return SweepFolder(folder.path.parent).logs / f"batch-{owner.cluster or 'slurm'}-{job_id}-{owner.restart_count}"


def _word(folder: RunFolder, claim: Claim) -> str | None:
    mark = word_file(folder, claim)
    if mark is None:
        return None
    try:
        if mark.stat().st_mtime < folder.claim(claim.generation).stat().st_mtime:
            return None  # about an older job: a cluster that was set up anew counts its jobs from 1 again
        words = mark.read_text().split()
    except (OSError, ValueError):
        return None
    return words[0] if words and words[0] in AFTER_ENDING else None


def _budget(ending: str, end: End) -> str | None:
    before, after = end.facts.get("step_before"), end.facts.get("durable_step")
    return budget_of(ending, isinstance(before, int) and isinstance(after, int) and after > before)
