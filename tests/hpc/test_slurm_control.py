"""What Slurm is told about queued jobs, and how its refusals are read. The texts are those of Slurm 22.05."""

import pytest

from hpc import slurm, slurm_control


class Asked:
    """A Slurm that answers what the test says and keeps what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[str] = []
        self.stderr, self.stdout, self.code = "", "", 0
        monkeypatch.setattr(slurm, "call", self._call)

    def _call(self, *args: str, **_: object) -> slurm.Reply:
        self.commands.append(" ".join(args))
        return slurm.Reply(returncode=self.code, stdout=self.stdout, stderr=self.stderr)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    return Asked(monkeypatch)


@pytest.mark.parametrize(
    ("indices", "text"),
    [((3,), "7_3"), ((0, 1, 2), "7_[0-2]"), ((5, 0, 1, 9), "7_[0-1,5,9]"), ((4, 6), "7_[4,6]")],
)
def test_tasks_of_an_array_are_named_in_spans(indices: tuple[int, ...], text: str) -> None:
    assert slurm_control.tasks_of("7", indices) == text


def test_an_update_is_one_call(asked: Asked) -> None:
    assert slurm_control.update("7_[0-2]", {"TimeLimit": "240", "Features": "a100|h200"}) == []
    assert asked.commands == ["scontrol update JobId=7_[0-2] TimeLimit=240 Features=a100|h200"]


def test_refusals_are_listed_without_the_ranges_that_were_changed(asked: Asked) -> None:
    asked.code, asked.stderr = 1, "1_0-3: Access/permission denied\n1_4-19: No error"
    assert slurm_control.update("1", {"TimeLimit": "7"}) == ["1_0-3: Access/permission denied"]


def test_a_refusal_without_words_is_still_one(asked: Asked) -> None:
    asked.code = 3
    assert slurm_control.hold("12") == ["12: exit 3"]
    asked.code, asked.stderr = 0, "warning"
    assert slurm_control.release("12") == []


def test_dependencies_are_read_as_they_would_be_written(asked: Asked) -> None:
    asked.stdout = "20|afterok:10_*(unfulfilled),afterany:11_*(unfulfilled)\n21|(null)\n22|afterok:10_*(failed)\n"
    assert slurm_control.dependencies() == {"20": "afterok:10,afterany:11", "22": "afterok:10"}
    asked.code = 1
    assert slurm_control.dependencies() is None
