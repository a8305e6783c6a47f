from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits, prepared once for all kill rings."""
    from seresnet.config import DataConfig
    from seresnet.prepare import prepare

    folder = tmp_path_factory.mktemp("data")
    prepare(DataConfig(name="digits"), folder)
    return folder
