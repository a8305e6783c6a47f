"""How much is attacked, and what came of it: every row of docs/reliability.md is reported by its test and printed at the end.

`make test`: a little of everything. RING set: what CI does. `--nightly`: the amounts of docs/reliability.md.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from seresnet import provenance


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: what was attacked, how often, and what was seen."""

    attack: str
    amount: str
    result: str
    seconds: int
    date: str
    commit: str


_ROWS = pytest.StashKey[list[Row]]()

Amount = Callable[[int, int, int], int]
Report = Callable[[str, str, str], None]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Hundreds of kills take longer than a test may; what hangs is found by limits of its own."""
    if config.getoption("--nightly", default=False):
        for item in items:
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture
def amount(request: pytest.FixtureRequest) -> Amount:
    """amount(quick, ci, nightly): the one that this run of the tests is for."""

    def choose(quick: int, ci: int, nightly: int) -> int:
        if request.config.getoption("--nightly", default=False):
            return nightly
        return ci if os.environ.get("RING") else quick

    return choose


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Iterator[Report]:
    """report(attack, amount, result): a row of the table; called once the test knows that it holds."""
    began = time.monotonic()

    def note(attack: str, amount: str, result: str) -> None:
        seconds, date = round(time.monotonic() - began), time.strftime("%Y-%m-%d", time.gmtime())
        row = Row(attack=attack, amount=amount, result=result, seconds=seconds, date=date, commit=_short(provenance.commit() or "unknown"))
        request.config.stash.setdefault(_ROWS, []).append(row)

    yield note


def _short(commit: str) -> str:
    return commit[:7] + ("+dirty" if commit.endswith("+dirty") else "")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table, and with HPC_FAULTS_TABLE=FILE its rows as JSON lines appended to a file, from which docs/reliability.md is made."""
    rows = config.stash.get(_ROWS, [])
    if not rows:
        return
    terminalreporter.section("what was attacked")
    width = max(len(row.attack) for row in rows)
    for row in rows:
        terminalreporter.write_line(f"{row.attack:<{width}}  {row.amount}: {row.result} ({row.seconds} s)")
    if table := os.environ.get("HPC_FAULTS_TABLE"):
        with open(table, "a") as file:
            file.writelines(json.dumps(asdict(row)) + "\n" for row in rows)


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, prepared once for all kill rings."""
    from seresnet.config import DataConfig
    from seresnet.prepare import prepare

    folder = tmp_path_factory.mktemp("data")
    prepare(DataConfig(name="digits"), folder)
    return folder
