"""A sweep from text, for tests of the grammar."""

from pathlib import Path

from hpc.sweep import PlannedRun, SweepSpec, expand, read_sweep


def read_text(folder: Path, text: str, *overrides: str) -> SweepSpec:
    """The sweep of a text, which lies in folder/sweep.yaml from then on."""
    file = folder / "sweep.yaml"
    file.write_text(text)
    return read_sweep(file, overrides)


def expand_text(folder: Path, text: str, *overrides: str) -> tuple[PlannedRun, ...]:
    return expand(read_text(folder, text, *overrides))
