"""Why Slurm lets a job wait, in words for people who do not know Slurm's.

A table and nothing else; what is not in it is shown as Slurm says it. One invariant: Slurm's own word is never hidden, because it is
what a search engine and the site's staff understand.
"""

import re

#: Slurm's word (squeue's %r) -> what it means for who waits. Sources: squeue(1) "JOB REASON CODES" of 22.05 to 24.11.
REASONS = {
    "None": "Slurm has not looked at it yet",
    "Priority": "waits its turn: jobs with higher priority come first",
    "Resources": "is next: waits until enough GPUs or nodes are free",
    "Nodes": "waits until enough nodes are free",
    "BeginTime": "starts at a set time; after a requeue Slurm holds a job back for a few minutes at most",
    "Cleaning": "its last attempt is still being cleaned up on the node",
    "Dependency": "waits for another job, such as a smoke test, to end",
    "DependencyNeverSatisfied": "will never start: the job that it waits for has failed; cancel it and launch again",
    "JobHeldUser": "held by you: --release lets it go",
    "JobHeldAdmin": "held by the site: ask its staff",
    "JobArrayTaskLimit": "waits for a place: the array runs as many tasks as it may at a time (--max-gpus)",
    "JobArrayTaskThrottle": "waits for a place: the array runs as many tasks as it may at a time (--max-gpus)",
    "JobHoldMaxRequeue": "held by Slurm, because it was requeued too often: --release lets it go",
    "Reservation": "waits for its reservation to begin",
    "ReservationDeleted": "will not start: its reservation is gone",
    "ReqNodeNotAvail": "a node that it needs is down, reserved or in maintenance",
    "NodeDown": "a node that it needs is down",
    "BadConstraints": "will not start: no node fits its constraints; change them with --alter site.constraint=...",
    "PartitionDown": "its partition starts nothing at the moment",
    "PartitionInactive": "its partition is switched off",
    "PartitionConfig": "will not start: it asks for what its partition does not have",
    "PartitionNodeLimit": "will not start: it asks for more nodes than its partition allows or has up",
    "PartitionTimeLimit": "will not start: its time limit is over the partition's; lower it with --alter site.walltime_min=...",
    "AccountNotAllowed": "will not start: its account may not use this partition or QOS",
    "InvalidAccount": "will not start: its account does not exist; see site.account",
    "InvalidQOS": "will not start: its QOS does not exist or is not yours; see site.qos",
    "QOSNotAllowed": "will not start: its QOS may not be used in this partition or by this account",
    "Licenses": "waits for a license",
    "BurstBufferResources": "waits for space in the burst buffer",
    "FrontEndDown": "the front end that would start it is down",
    "SchedDefer": "Slurm is too busy to start it at once",
    "SystemFailure": "Slurm or a node had a fault: ask the site's staff",
    "NonZeroExitCode": "its last attempt failed",
    "OutOfMemory": "its last attempt ran out of memory",
    "TimeLimit": "its last attempt reached the time limit",
    "JobLaunchFailure": "could not be started on its node: ask the site's staff",
    "LaunchFailedRequeuedHeld": "could not be started on its node and is held: --release tries again",
    "RaisedSignal": "its last attempt was ended by a signal",
    "Prolog": "its node is being prepared",
    "InactiveLimit": "ended by the site, because it did nothing",
    "AssociationJobLimit": "waits: your account runs as many jobs as it may",
    "AssociationResourceLimit": "waits: your account uses as much as it may",
    "AssociationTimeLimit": "waits: your account has used up its time",
    "QOSJobLimit": "waits: this QOS runs as many jobs as it may",
    "QOSResourceLimit": "waits: this QOS uses as much as it may",
    "QOSTimeLimit": "will not start: its time limit is over its QOS's; lower it with --alter site.walltime_min=...",
    "QOSUsageThreshold": "waits: your share of this QOS is used up",
    "AcctUsageThreshold": "waits: your account's share is used up",
    "MaxJobsPerUser": "waits: you run as many jobs as you may",
    "MaxSubmitJobsPerUser": "waits: you have as many jobs queued as you may",
    "MaxMemPerLimit": "will not start: it asks for more memory than a node or core may give; lower site.mem_gb_per_rank",
}

#: The limits of accounts and of QOS have systematic names: whose limit, of a group or of one, what is counted, and for whom.
_LIMIT = re.compile(
    r"(QOS|Assoc)(Grp|Max|Min)([A-Za-z]+?)(RunMinutes|Minutes)?(?:Limit)?(PerUser|PerAccount|PerJob|PerNode|PU|PA|PN)?(?:Limit)?"
)
_WHOSE = {"QOS": "this QOS", "Assoc": "your account"}
_USED = {
    "GRES": "use as many GPUs",
    "Cpu": "use as many cores",
    "CPU": "use as many cores",
    "Mem": "use as much memory",
    "Memory": "use as much memory",
    "Node": "use as many nodes",
    "Jobs": "run as many jobs",
    "Job": "run as many jobs",
    "SubmitJobs": "have as many jobs queued",
    "SubmitJob": "have as many jobs queued",
    "Wall": "use as much walltime",
    "WallDuration": "use as much walltime",
    "Billing": "use as many billing units",
    "BB": "use as much burst buffer",
    "Energy": "use as much energy",
    "License": "use as many licenses",
}


def plain_reason(reason: str) -> str:
    """The reason in plain words with Slurm's own in parentheses; an unknown one as it is. Details after a comma are kept."""
    word, _, details = reason.strip().strip("()").partition(",")
    word = word.strip()
    plain = REASONS.get(word) or _limit_text(word)
    if plain is None:
        return reason.strip() or "Slurm gives no reason"
    said = f"{word}: {details.strip()}" if details.strip() else word
    return f"{plain} ({said})" if word != "None" else plain


def _limit_text(word: str) -> str | None:
    found = _LIMIT.fullmatch(word)
    used = _USED.get(found[3]) if found else None
    if found is None or used is None:
        return None
    whose, kind, each = _WHOSE[found[1]], found[2], found[5]
    if found[4]:
        used = f"{used.replace('as many', 'as much time on').replace('as much memory', 'as much time on memory')}"
    if kind == "Min":
        return f"will not start: it would not {used} as {whose} asks for"
    if each in ("PerJob", "PerNode", "PN"):
        more = used.removeprefix("use ").replace("as many", "more").replace("as much", "more")
        return f"will not start as it is: it asks for {more} than {whose} allows {'one job' if each == 'PerJob' else 'on one node'}"
    if kind == "Grp":
        return f"waits: the users of {whose} together {used} as they may"
    return f"waits: {'the users of your account' if each in ('PerAccount', 'PA') else 'you'} {used} as {whose} allows"
