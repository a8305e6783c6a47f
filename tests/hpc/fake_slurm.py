"""Clients of Slurm that keep books and run nothing, as programs on PATH: for tests in which real launchers race or are killed."""

from pathlib import Path

import pytest

from hpc.paths import Plan, SweepFolder

SBATCH = """\
#!/bin/sh
[ "$1" = --test-only ] && exit 1
for script; do :; done
# No file descriptor for the lock: it could be the one that a launcher asked us to keep open.
while ! mkdir "$BOOKS/lock" 2>/dev/null; do sleep 0.01; done
job=$(( $(cat "$BOOKS/last" 2>/dev/null || echo 100) + 1 )); echo $job >"$BOOKS/last"
name=$(sed -n 's/^#SBATCH --job-name=//p' "$script"); last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
cp "$script" "$BOOKS/$job.sh"
env >"$BOOKS/$job.env"
index=0
while [ $index -le $last ]; do echo "${job}_$index|$name" >>"$BOOKS/jobs"; index=$((index + 1)); done
rmdir "$BOOKS/lock"
sleep "${BOOKS_SECONDS:-0}"
echo $job
"""

SQUEUE = """\
#!/bin/sh
for word; do case "$word" in --format=*) format=${word#--format=} ;; esac; done
case "$format" in *%j*) ;; *) exit 0 ;; esac
[ -e "$BOOKS/jobs" ] || exit 0
while IFS='|' read -r job name; do
    echo "$format" | sed "s/%i/$job/; s/%T/PENDING/; s/%r/None/; s/%S/N\\/A/; s/%j/$name/"
done <"$BOOKS/jobs"
"""

SCONTROL = """\
#!/bin/sh
echo "ClusterName = books"
"""


class Books:
    """What was sent, by whoever sent it."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = root / "books"
        self.path.mkdir()
        programs = root / "bin"
        programs.mkdir()
        for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scontrol", SCONTROL), ("sacctmgr", "#!/bin/sh\nexit 1\n")):
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
        monkeypatch.setenv("BOOKS", str(self.path))

    def jobs(self) -> list[tuple[str, int, str]]:
        """(job id, index, job name) of every task that was accepted."""
        try:
            lines = (self.path / "jobs").read_text().splitlines()
        except FileNotFoundError:
            return []
        rows = [line.split("|") for line in lines]
        return [(row[0].partition("_")[0], int(row[0].partition("_")[2]), row[1]) for row in rows]

    def sent_runs(self, sweep: SweepFolder) -> list[str]:
        """The slugs that the accepted tasks train, as often as they would be trained."""
        plan = Plan.read(sweep)
        tasks = [f"{name.rpartition('-')[2]}/{index}" for _, index, name in self.jobs()]
        return sorted(plan.runs[run_id].slug for task in tasks for run_id in plan.tasks[task])
