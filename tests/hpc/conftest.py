from collections.abc import Iterator
from pathlib import Path

import pytest
from launch_bench import Bench
from wandb_stub import Stub, serving


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HPC_DATA_DIR", str(tmp_path / "data"))
    return Bench(tmp_path, monkeypatch)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serving() as server:
        yield server
