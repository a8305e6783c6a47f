"""Every message of a faulty site, compared whole. None of them needs a cluster, and all come before anything is written."""

import shutil
from pathlib import Path

import pytest

from hpc.shapes import TaskShape
from hpc.site import read_site, require_account
from hpc.slurm import check_script
from seresnet.errors import ConfigError

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("site_*.yaml"))


def message(path: Path) -> str:
    """What a launch says of a site, up to the script of its job."""
    with pytest.raises(ConfigError) as caught:
        site = read_site(str(path), environ={"PATH": "/nonexistent", "HOME": str(path.parent / "home")})
        require_account(site)
        check_script(Path("logs"), Path("code"), site, TaskShape(ranks=2, gpus=2))
    return str(caught.value)


def test_golden_cases_are_all_there() -> None:
    assert len(CASES) >= 20, CASES


@pytest.mark.parametrize("case", CASES)
def test_message_of_a_faulty_site_is_the_golden_one(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(GOLDEN / f"{case}.yaml", tmp_path / "site.yaml")
    monkeypatch.chdir(tmp_path)
    found = message(tmp_path / "site.yaml").replace(f"{tmp_path}/", "")
    assert f"{found}\n" == (GOLDEN / f"{case}.txt").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["site.yaml"]
