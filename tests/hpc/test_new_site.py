"""`--new-site`: the file that comes of what a cluster says, for every recorded cluster, and what is refused."""

from pathlib import Path

import pytest
from test_limits import limits_of

from hpc import limits, new_site
from hpc.launch import main
from hpc.limits import Limits
from hpc.site import Site, read_site

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with configs/site, on a cluster that says what 24.11 does."""
    (tmp_path / "configs" / "site").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(limits, "live_limits", lambda site: limits_of("slurm_24.11", "me", site))
    return tmp_path


@pytest.mark.parametrize(("cluster", "user"), [("slurm_22.05", "hpctest"), ("slurm_24.11", "me")])
def test_the_site_of_a_cluster_is_the_golden_one_and_can_be_read(cluster: str, user: str, tmp_path: Path) -> None:
    text = new_site.site_text(limits_of(cluster, user, Site(name="new")))
    assert text == (GOLDEN / f"new_{cluster}.txt").read_text()
    (tmp_path / "new.yaml").write_text(text)
    assert read_site(str(tmp_path / "new.yaml"), environ={}).scheduler == "slurm"


def test_a_new_site_is_written_once_and_its_place_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--new-site", "mine"]) == 0
    assert "wrote configs/site/mine.yaml (cluster big)" in capsys.readouterr().out
    assert read_site("mine").name == "mine"
    assert main(["--new-site", "mine"]) == 2
    assert "configs/site/mine.yaml exists and is left alone" in capsys.readouterr().err
    assert not (here / "home").exists(), "nothing is written below HOME"


@pytest.mark.parametrize(
    ("name", "told"), [("a/b", "letters, digits"), ("a.yaml", "without .yaml"), ("..", "letters, digits"), ("slurm", "is shipped")]
)
def test_a_name_that_cannot_be_a_sites_is_refused(here: Path, name: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--new-site", name]) == 2 and told in capsys.readouterr().err
    assert [*here.rglob("*.yaml")] == []


def test_without_a_slurm_or_a_place_the_fix_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(limits, "live_limits", lambda site: Limits())
    assert main(["--new-site", "mine"]) == 2 and "Say it on a login node" in capsys.readouterr().err
    (here / "configs" / "site").rmdir()
    assert main(["--new-site", "mine"]) == 2 and "mkdir -p configs/site" in capsys.readouterr().err


def test_words_of_a_cluster_cannot_break_the_file() -> None:
    assert [new_site._yaml(text) for text in ("lab", "true", "12", "a b", "it's")] == ["lab", "'true'", "'12'", "'a b'", "'it''s'"]
    assert new_site._one_line("a\nb") == "a?b"
