"""What status says of a run that is replayed, or whose divergence did not come back."""

from pathlib import Path

import pytest
from fake_sweep import FakeSweep, in_every_state

from hpc import slurm, status_look
from hpc.status_json import to_json
from hpc.status_view import render
from seresnet.attempts import newest_generation
from seresnet.replay import Replay, write
from seresnet.run_folder import RunFolder

HARDWARE = Replay(
    number=1, what="loss not finite", step=812, from_step=780, hosts=("gpu-17",), suspects=(), is_rewound=True, outcome="gone"
)


@pytest.mark.parametrize("width", [60, 100, 200])
def test_a_suspect_node_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    sweep: FakeSweep
    sweep, jobs = in_every_state(tmp_path / "runs")
    monkeypatch.setattr(slurm, "listed_jobs", lambda: jobs)
    row = next(row for row in status_look.take(sweep.folder).rows if row.run.state == "running")
    folder = RunFolder(path=row.run.folder.path)
    write(folder, newest_generation(folder), HARDWARE)
    look = status_look.take(sweep.folder)
    said = "replayed step 780-812 without it (loss not finite): node gpu-17 is suspect"
    assert [run["note"] for run in to_json(look)["runs"] if run["slug"] == row.run.slug] == [said]
    text = render(look, width, is_ascii=True).plain
    assert f"{row.run.slug}: {said}" in text, text
