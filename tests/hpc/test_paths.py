"""Names and records of a sweep's folder: written, read back, and refused when they are not this version's."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hpc.paths import Plan, PlannedFolder, Submission, Submissions, SweepFolder, WandbSettings, next_number
from seresnet.errors import ConfigError

PLAN = Plan(
    sweep="demo",
    salt="0a1b2c3d",
    arms={"zeta": ("bbbbbbbbbbbb",), "alpha": ("aaaaaaaaaaaa", "bbbbbbbbbbbb")},
    runs={
        "bbbbbbbbbbbb": PlannedFolder(slug="zeta-s0", folder="zeta-s0-bbbbbbbbbbbb", arms=("zeta", "alpha")),
        "aaaaaaaaaaaa": PlannedFolder(slug="alpha-s0", folder="alpha-s0-aaaaaaaaaaaa", arms=("alpha",)),
    },
    tasks={"0001/0": ("bbbbbbbbbbbb",), "0001/1": ("aaaaaaaaaaaa",)},
    wandb=WandbSettings(mode="offline", project="p"),
)
ENTRY = Submission(id="0001", created=1.5, code="0001", mode="slurm", tasks=("0001/0", "0001/1"), site={"name": "slurm"})


def test_a_plan_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    PLAN.write(SweepFolder(tmp_path))
    assert Plan.read(SweepFolder(tmp_path)) == PLAN


def test_arms_keep_the_order_of_the_yaml_on_disk(tmp_path: Path) -> None:
    PLAN.write(SweepFolder(tmp_path))
    assert list(json.loads((tmp_path / "plan.json").read_text())["arms"]) == ["zeta", "alpha"]


def test_a_plan_of_another_schema_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text('{"schema": 99}')
    with pytest.raises(ConfigError, match=r"plan\.json: schema is 99, this version reads 1"):
        Plan.read(SweepFolder(tmp_path))


@pytest.mark.parametrize("change", [{"tasks": 3}, {"more": 1}, {"wandb": {"modus": "auto"}}, {"runs": {"x": {}}}])
def test_a_damaged_plan_is_refused_without_a_traceback_of_ours(tmp_path: Path, change: dict[str, object]) -> None:
    PLAN.write(SweepFolder(tmp_path))
    value = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**value, **change}))
    with pytest.raises(ConfigError, match="not a record of this version"):
        Plan.read(SweepFolder(tmp_path))


def test_a_folder_without_a_plan_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Launch it first"):
        Plan.read(SweepFolder(tmp_path))


def test_submissions_are_read_back_and_replaced_by_id(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path)
    Submissions().with_entry(ENTRY).write(sweep)
    submitted = replace(ENTRY, job_id="77", state="submitted")
    record = Submissions.read(sweep).with_entry(submitted)
    record.write(sweep)
    assert Submissions.read(sweep).submissions == (submitted,)
    assert record.next_id() == "0002"


def test_ids_that_only_the_plan_remembers_are_not_used_again(tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path)
    replace(PLAN, tasks={**PLAN.tasks, "0007/0": ("aaaaaaaaaaaa",), "single/bbbbbbbbbbbb": ("bbbbbbbbbbbb",)}).write(sweep)
    record = Submissions.read(sweep)
    assert (record.submissions, record.next_id()) == ((), "0008")
    record.with_entry(ENTRY).write(sweep)
    assert Submissions.read(sweep).with_entry(ENTRY).next_id() == "0008"
    assert json.loads(sweep.submission.read_text()).keys() == {"schema", "submissions"}


@pytest.mark.parametrize("change", [{"id": "x"}, {"id": 1}, {"id": "²"}, {"tasks": None}, {"more": 1}])
def test_a_damaged_submission_is_refused_by_name(tmp_path: Path, change: dict[str, object]) -> None:
    sweep = SweepFolder(tmp_path)
    Submissions().with_entry(ENTRY).write(sweep)
    value = json.loads(sweep.submission.read_text())
    value["submissions"][0] |= change
    sweep.submission.write_text(json.dumps(value))
    with pytest.raises(ConfigError, match=r"submission\.json: not a record of this version"):
        Submissions.read(sweep)


def test_no_absolute_path_is_written_outside_a_site(tmp_path: Path) -> None:
    PLAN.write(SweepFolder(tmp_path))
    Submissions().with_entry(ENTRY).write(SweepFolder(tmp_path))
    for name in ("plan.json", "submission.json"):
        assert str(tmp_path) not in (tmp_path / name).read_text(), name


@pytest.mark.parametrize("name", ["aaaaaaaaaaaa", "aaaa", "alpha-s0", "alpha-s0-aaaaaaaaaaaa"])
def test_a_run_is_found_by_id_prefix_slug_and_folder(name: str) -> None:
    assert PLAN.find(name) == "aaaaaaaaaaaa"


def test_an_unknown_run_is_answered_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"gamma is not a run of this sweep\. Runs: zeta-s0 \(bbbbbbbbbbbb\), alpha-s0"):
        PLAN.find("gamma")


def test_numbers_go_on_after_the_highest_and_ignore_other_names() -> None:
    assert next_number(["0002", "0010", ".0011.tmp", "notes"]) == "0011"
    assert next_number([]) == "0001"
