"""Who cancelled a job: accounting knows, and only when the job is over, so that the supervisor can only write `cancelled`.

Asked by what shows runs to people, later and at most once. One invariant: without an answer nothing is claimed of anybody.
"""

import os
from collections.abc import Iterable, Mapping

from hpc import slurm
from hpc.requeue import UNASKED, UNKNOWN_CANCELLER, canceller

#: sacct may be slow for many jobs; status has something to show without it.
SACCT_LIMIT_S = 10.0


def who_cancelled(job_ids: Iterable[str]) -> dict[str, int]:
    """The uid behind each cancelled job or array task ("123_4"), by one call of sacct; without those that it does not name.

    Empty when sacct is missing, refuses or does not answer in time.
    """
    wanted = set(job_ids)
    if not wanted:
        return {}
    whole = sorted({job_id.partition("_")[0] for job_id in wanted})
    reply = slurm.call("sacct", "-X", "-n", "-P", "--format=JobID,State", "-j", ",".join(whole), timeout_s=SACCT_LIMIT_S)
    return parse_cancellers(reply.stdout, wanted) if reply.succeeded else {}


def parse_cancellers(text: str, wanted: Iterable[str]) -> dict[str, int]:
    """sacct's "123_4|CANCELLED by 0" lines, those of the wanted jobs."""
    rows = dict(line.split("|", 1) for line in text.splitlines() if "|" in line)
    uids = {job_id: canceller(rows[job_id]) for job_id in wanted if job_id in rows}
    return {job_id: uid for job_id, uid in uids.items() if uid is not None}


def may_be_cancelled(ending: str | None, reason: str | None) -> bool:
    """Whether accounting could say more: of a cancelled attempt, and of one that could ask nobody why it was stopped."""
    return ending == "cancelled" or (ending == "stopped" and UNASKED in (reason or ""))


def refine(
    ending: str, reason: str | None, job_id: str | None, uids: Mapping[str, int], owner: int | None = None
) -> tuple[str, str | None]:
    """(ending, reason) with what who_cancelled found: `cancelled` stays the user's, anybody else's is `cancelled_by_site`.

    owner: uid of the job's user; None = who asks.
    """
    uid = uids.get(job_id) if job_id is not None else None
    if uid is None or not may_be_cancelled(ending, reason):
        return ending, reason
    is_own = uid == (os.getuid() if owner is None else owner)
    who = "by the user (scancel)" if is_own else "by the site (root)" if uid == 0 else f"by the site (uid {uid})"
    said = (reason or "").replace(UNASKED, UNKNOWN_CANCELLER).replace(UNKNOWN_CANCELLER, who)
    return ("cancelled" if is_own else "cancelled_by_site"), said if who in said else f"{who}; {said}".rstrip("; ")
