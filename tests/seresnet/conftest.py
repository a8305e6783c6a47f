from pathlib import Path

import pytest
from trained_runs import train_two


@pytest.fixture(scope="session")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Trained once; tests only read them."""
    return train_two(tmp_path_factory.mktemp("two_runs"))
