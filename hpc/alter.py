"""`--alter site.key=value`: check the new values, give them to the tasks that wait, and write down what is so now.

What runs gets them when it waits again (hpc.renewal). One invariant: only tasks that wait are asked, so that a shorter walltime ends
nothing that runs; and a value that Slurm refuses for the first task is asked of no other.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from hpc import queues, renewal, slurm_control
from hpc.paths import Plan, Submissions, SweepFolder
from hpc.plan_view import count
from hpc.queued_arrays import QueuedArray
from hpc.sbatch_script import comment_of
from hpc.shapes import TaskShape
from hpc.site import Site, read_site
from seresnet.config_file import parse_override
from seresnet.errors import ConfigError
from seresnet.strict_yaml import Faults, Located, nearest

#: What Slurm lets a user change in the queue -> whether it may also be unset.
ALTERABLE: dict[str, bool] = {
    "walltime_min": False,
    "constraint": True,
    "partition": False,
    "qos": False,
    "account": False,
    "comment": True,
    "gpu_type": True,
    "exclude": True,
    "array_parallelism": True,
}


Wishes = dict[str, Located]  # key of a site -> value and place


@dataclass(frozen=True, kw_only=True)
class Alteration:
    """What one array gets: the site as it will be, and Slurm's names for what changes."""

    array: QueuedArray
    site: Site
    values: Mapping[str, str]  # of every task that waits
    throttle: str | None  # of the array as a whole


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of an alteration."""

    record: Submissions
    lines: tuple[str, ...]  # to print
    refusals: tuple[str, ...]  # in Slurm's words


def read_wishes(words: Sequence[str]) -> Wishes:
    """What words such as site.walltime_min=240 ask for. Raises ConfigError with every fault."""
    faults = Faults()
    wishes: Wishes = {}
    for key, entry in filter(None, (parse_override(word, faults) for word in words)):
        name = key.removeprefix("site.")
        if not key.startswith("site.") or name not in ALTERABLE:
            near = nearest(name, list(ALTERABLE))
            meant = f"Did you mean site.{near}? " if near else ""
            known = ", ".join(f"site.{known}" for known in ALTERABLE)
            faults.add(entry.place, key, f"cannot be changed once a task is queued. {meant}These can: {known}.")
        elif entry.value is None and not ALTERABLE[name]:
            faults.add(entry.place, key, "cannot be unset once a task is queued. Give it a value.")
        elif name in wishes:
            faults.add(entry.place, key, f"is given twice, first as {wishes[name].shown()}. Keep one.")
        else:
            wishes[name] = entry
    faults.raise_any()
    return wishes


def plan_alterations(arrays: Sequence[QueuedArray], wishes: Wishes) -> list[Alteration]:
    """Check the wishes against every array's site and the cluster's live limits. Raises ConfigError; nothing is asked of a task yet."""
    alterations, faults = [], []
    for array in arrays:
        asked = {**array.submission.site, **{key: entry.plain() for key, entry in wishes.items()}}
        site = read_site(asked, where=f"submission {array.submission.id}", origins={key: str(wish.place) for key, wish in wishes.items()})
        faults += _faults(array, site, wishes)
        values = slurm_values(site, array.shape, wishes)
        alterations.append(Alteration(array=array, site=site, values=values, throttle=values.pop("ArrayTaskThrottle", None)))
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))
    return alterations


def _faults(array: QueuedArray, site: Site, wishes: Wishes) -> list[str]:
    from hpc import limits  # asks the cluster: only here

    found = limits.faults(limits.live_limits(site), site, [(array.shape, len(array.pending) + len(array.running))])
    if "gpu_type" in wishes and (not array.submission.gpus or site.gpu_request == "none"):
        found.append(f"{wishes['gpu_type'].place}: site.gpu_type: tasks of job {array.job_id} ask for no GPU. Leave it out.")
    return found


def slurm_values(site: Site, shape: TaskShape, keys: Mapping[str, object] | Sequence[str]) -> dict[str, str]:
    """What scontrol update is told for keys of a site; an empty value unsets."""
    gpu = f"gpu:{site.gpu_type}:{shape.gpus}" if site.gpu_type else f"gpu:{shape.gpus}"
    # partition_accounts: another partition may charge another account.
    partition = {"Partition": ",".join(site.partitions)} | ({"Account": site.charged_account or ""} if site.partition_accounts else {})
    known: dict[str, dict[str, str]] = {
        "walltime_min": {"TimeLimit": str(site.walltime_min)},
        "constraint": {"Features": site.constraint or ""},
        "partition": partition,
        "qos": {"QOS": site.qos or ""},
        "account": {"Account": site.charged_account or ""},
        "comment": {"Comment": comment_of(site, shape) or ""},
        "gpu_type": {"Gres": gpu},
        "exclude": {"ExcNodeList": site.exclude or ""},
        "array_parallelism": {"ArrayTaskThrottle": str(site.array_parallelism or 0)},
    }
    return {name: value for key in keys for name, value in known[key].items()}


def apply(sweep: SweepFolder, plan: Plan, record: Submissions, alteration: Alteration, keys: Sequence[str]) -> Outcome:
    """Ask Slurm for one array and write down what is so now. Call it under the launch lock."""
    array, values = alteration.array, alteration.values
    is_good, started, refusals = _update_waiting(alteration)
    if alteration.throttle is not None:
        refused = slurm_control.update(array.job_id, {"ArrayTaskThrottle": alteration.throttle})
        refusals, is_good = [*refusals, *refused], is_good and not refused
    if not is_good:
        return Outcome(record=record, lines=(f"job {array.job_id}: nothing was altered",), refusals=tuple(refusals))
    plain = alteration.site.to_dict()
    site = {**array.submission.site, **{key: plain[key] for key in keys}}
    record = record.with_entry(replace(array.submission, site=site))
    record.write(sweep)
    later = [*array.running, *started] if values else []
    if later:
        renewal.remember(sweep, array.job_id, queues.job_name(plan, array.submission.id), values, later)
    return Outcome(record=record, lines=(_told(alteration, len(array.pending) - len(started), later),), refusals=tuple(refusals))


def _told(alteration: Alteration, waiting: int, later: Sequence[int]) -> str:
    array = alteration.array
    throttle = {"ArrayTaskThrottle": alteration.throttle} if alteration.throttle is not None else {}
    what = " ".join(f"{key}={value}" for key, value in {**alteration.values, **throttle}.items())
    text = f"job {array.job_id}: {what} for {count(waiting, 'task')} that {'waits' if waiting == 1 else 'wait'}"
    if later:
        who = slurm_control.tasks_of(array.job_id, later)
        text += f"; {count(len(later), 'task')} that {'runs' if len(later) == 1 else 'run'} at the next requeue ({who})"
    return text


def _update_waiting(alteration: Alteration) -> tuple[bool, list[int], list[str]]:
    """Whether Slurm takes the values, the tasks that have started meanwhile, and what was refused.

    One task is asked before the rest: on 22.05 a bad Gres was refused for the first task of an array only, and emptied it; the others
    took it and would have waited for ever (seen).
    """
    array, values = alteration.array, alteration.values
    started: list[int] = []
    for number, index in enumerate(array.pending if values else ()):
        first = slurm_control.tasks_of(array.job_id, [index])
        refusals = slurm_control.update(first, values)
        if not refusals:
            rest = array.pending[number + 1 :]
            refused = slurm_control.update(slurm_control.tasks_of(array.job_id, rest), values) if rest else []
            return True, [*started, *_indices(refused)], refused
        if slurm_control.still_waits(first):
            slurm_control.update(first, _old_values(array, alteration))
            return False, [], refusals
        started.append(index)
    return True, started, []


def _old_values(array: QueuedArray, alteration: Alteration) -> dict[str, str]:
    known = {key: value for key, value in array.submission.site.items() if key in {each.name for each in fields(Site)}}
    before = slurm_values(Site(**known), array.shape, tuple(ALTERABLE))
    return {name: before[name] for name in alteration.values}


def _indices(refusals: Sequence[str]) -> list[int]:
    """The tasks that lines such as "12_3: ..." and "12_5-7: ..." speak of."""
    spans = [found for text in refusals if (found := re.match(r"\d+_\[?(\d+)(?:-(\d+))?", text))]
    return [index for span in spans for index in range(int(span[1]), int(span[2] or span[1]) + 1)]
