"""The attempts of one run as spans of time: who held how many devices from when to when, and how it ended.

Reads the records of attempts; hpc.spent says what counts as the end of one. One invariant: a time that nobody knows is None, never a guess.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hpc.batch_word import known_end
from hpc.paths import Submission
from hpc.spent import is_time, last_sign, width
from seresnet import attempts
from seresnet.run_folder import RunFolder, RunHead


@dataclass(frozen=True, kw_only=True)
class Span:
    """One attempt. Times are unix seconds; devices are GPUs of a cuda run, cores (ranks x threads) of a cpu run."""

    generation: int
    started: float | None
    ended: float | None  # its own word, else its last beat
    ending: str | None  # in the words of seresnet.exits; None while it has not ended, or if nobody could write how
    job: str | None  # "123_4", as users know it
    host: str | None
    restart_count: int  # of the job
    devices: float

    @property
    def device_hours(self) -> float:
        """0 where its beginning or its end is not known."""
        if self.started is None or self.ended is None:
            return 0.0
        return max(0.0, self.ended - self.started) * self.devices / 3600


def read_spans(folder: RunFolder, head: RunHead, by_job: Mapping[str, Submission]) -> tuple[Span, ...]:
    """Every attempt whose claim can be read, oldest first. by_job: SLURM's job id -> submission."""
    found = []
    for generation in attempts.generations(folder):
        try:
            found.append(_span(folder, generation, head, by_job))
        except OSError:
            continue
    return tuple(span for span in found if span is not None)


def _span(folder: RunFolder, generation: int, head: RunHead, by_job: Mapping[str, Submission]) -> Span | None:
    claim = attempts.read_claim(folder, generation)
    owner = claim.owner
    if owner is None:
        return None
    end = known_end(folder, claim)
    return Span(
        generation=generation,
        started=owner.started if is_time(owner.started) else None,
        ended=last_sign(folder, claim, attempts.read_end(folder, generation)),
        ending=end.ending if end else None,
        job=owner.array_job_id or owner.raw_job_id,
        host=owner.host,
        restart_count=owner.restart_count,
        devices=width(head, owner, by_job),
    )
