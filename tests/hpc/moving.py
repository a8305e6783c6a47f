"""What the tests of hpc.move share: folders as they were, a second file system, and a move that is refused."""

import os
from pathlib import Path
from typing import Any

import pytest
from fake_sweep import FakeSweep

from hpc import move
from seresnet.errors import SubmissionError


def snapshot(folder: Path) -> dict[str, bytes]:
    """Names and bytes; without what a lock holds, and without plan.json, whose `source` goes with the place."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock" and path.name != "plan.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def refuse_renames_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        if Path(source) == folder and Path(target).parent != folder.parent:
            raise OSError(18, "Invalid cross-device link", str(source))
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)


def refusal(sweep: FakeSweep, target: Path, **told: Any) -> str:
    with pytest.raises(SubmissionError) as caught:
        move.move(sweep.folder.path, target)
    assert sweep.folder.plan.exists() and not target.exists()
    return str(caught.value)
