"""Which tests run here. A test says by its marker what it needs; this file says in one line why it was left out.

Without RING, what this machine can do within minutes; with RING set (full, or one ring's name), slow tests too.
The cluster of tests/slurm says itself why it cannot start. tools/run_rings.py counts: under RING=full a skip is a failure, except
that of a gpu test where there is no GPU.
"""

import os
import signal
from collections.abc import Iterator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The long forms of the disturbing tests, which a person asks for."""
    parser.addoption("--nightly", action="store_true", help="larger amounts: hundreds of kills, larger sweeps; an hour and more")
    parser.addoption("--seed", type=int, default=0, help="of random disturbances")


def pytest_configure() -> None:
    """What every test starts from, and its children.

    A shell starts its background jobs with SIGINT ignored: tests of Ctrl-C would wait for ever. And a table at the end of every sweep that
    is trained here would cost seconds each; tests/hpc/test_last_table.py has them made.
    """
    os.environ.setdefault("HPC_TABLE_AT_END", "off")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave nightly tests to --nightly, skip what cannot run, with the reason, and mark gpu tests in the record that run_rings reads."""
    if not config.getoption("--nightly"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("nightly")])
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]
    lacking = {"slow": None if os.environ.get("RING") else "slow: RING=full make test runs it"}
    lacking["gpu"] = why_no_gpu() if any(item.get_closest_marker("gpu") for item in items) else None
    for item in items:
        if item.get_closest_marker("gpu"):
            item.user_properties.append(("needs", "gpu"))
        reasons = [reason for marker, reason in lacking.items() if reason and item.get_closest_marker(marker)]
        if reasons:
            item.add_marker(pytest.mark.skip(reason=reasons[-1]))


def why_no_gpu() -> str | None:
    """Asked only where gpu tests were collected: importing torch takes seconds."""
    try:
        import torch
    except ImportError:
        return "gpu: torch is not installed"
    return None if torch.cuda.is_available() else "gpu: no CUDA device"


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A supervisor in this process sees no job of ours, and leaves the handlers of stop signals as they were."""
    from seresnet.signals import STOP_SIGNALS

    for name in [name for name in os.environ if name.startswith(("SLURM_", "SERESNET_"))]:
        monkeypatch.delenv(name)
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
