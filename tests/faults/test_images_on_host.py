"""Images that wait on the host: a run killed there, and carried on there or on the device, ends with the bits of one on the device."""

from collections.abc import Generator
from pathlib import Path

import ranks as ring
from test_every_step import journal_of

RANKS = 2
HOOK = {"hook": "traces:steps"}


def config(folder: Path, digits_dir: Path, data_on: str) -> Path:
    folder.mkdir(exist_ok=True)
    return ring.tiny_config(
        folder, digits_dir, RANKS, global_batch_size=24, micro_batch_size=6, checkpoint_every_s=0.001, data_on=data_on
    ).rename(folder / f"{data_on}.yaml")


def killed_on_the_host(folder: Path, digits_dir: Path, plan: str, then: str) -> Generator[None, None, Path]:
    run_dir = folder / "run"
    start = ring.start(config(folder, digits_dir, "host"), run_dir, RANKS, environ={"TRACE_ATTEMPT": "1", "TRACE_DO": plan}, **HOOK)
    codes = yield from ring.attend(start)
    assert -9 in codes, f"{plan}: nobody was killed, {codes}\n{ring.output(run_dir)[-3000:]}"
    yield from ring.finishing(config(folder, digits_dir, then), run_dir, RANKS, environ={"TRACE_ATTEMPT": "2"}, **HOOK)
    return run_dir


def test_killed_with_images_on_the_host_a_run_ends_with_the_bits_of_one_with_them_on_the_device(
    digits_dir: Path, tmp_path: Path, amount
) -> None:
    plans = [("KILL after 13 0", "host"), ("KILL before 21 1", "device"), ("KILL after 8 0", "host")][: amount(1, 3, 3)]
    ring.finish(config(tmp_path / "whole", digits_dir, "device"), tmp_path / "whole" / "run", RANKS)
    expected = journal_of(tmp_path / "whole" / "run")
    legs = [killed_on_the_host(tmp_path / str(number), digits_dir, *plan) for number, plan in enumerate(plans)]
    for plan, run_dir in zip(plans, ring.together(legs, width=1), strict=True):
        assert journal_of(run_dir) == expected, f"{plan}: journal or state differ"
