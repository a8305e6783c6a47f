"""Forms of harm in text: YAML, names, records, the environment, and what people look at. test_malicious.py tries them."""

import io
import json
import subprocess
from dataclasses import replace
from pathlib import Path

from arena import Arena, environment, form, look_at, make_sweep
from rich.console import Console

from hpc import sbatch_script, single, status
from hpc.launcher import Request, launch
from hpc.paths import Plan, Submissions
from hpc.shapes import TaskShape
from hpc.site_keys import Site
from seresnet import attempts, claims
from seresnet.attempts import Claim, Owner
from seresnet.config_file import read_run_config
from seresnet.run_folder import RunFolder, RunRecord

CONFIG = """\
base:
  model: {width: 4, blocks: [1, 1, 1]}
  data: {name: digits}
  optim: {warmup_epochs: 0}
  train: {epochs: 2, global_batch_size: 128, device: cpu, amp: off, channels_last: false}
"""


# --- YAML ---


@form
def yaml_that_makes_objects(arena: Arena) -> None:
    touch = f"touch {arena.canary}"
    path = arena.inside / "sweep.yaml"
    tags = (
        f"!!python/object/apply:os.system ['{touch}']",
        f"!!python/object/new:os.system ['{touch}']",
        "!!python/name:os.system ''",
        "!!python/module:os ''",
        f"!!python/object/apply:subprocess.Popen [['touch', '{arena.canary}']]",
        f"!<tag:yaml.org,2002:python/object/apply:os.system> ['{touch}']",
        "!!binary aGVsbG8=",
    )
    for tag in tags:
        for text in (tag, f"name: {tag}\n{CONFIG}", f"name: x\n{CONFIG}arms: {{a: {tag}}}\n", f"name: x\n{CONFIG}site: {{setup: {tag}}}\n"):
            path.write_text(text + "\n")
            arena.refused(lambda: _plan(arena, path))
        path.write_text(f"train: {tag}\n")
        arena.refused(lambda: read_run_config(path, []))
        folder = RunFolder(path=arena.inside)
        folder.run_yaml.write_text(f"schema: 1\nrun_id: a\nslug: a\nconfig: {tag}\n")
        if "binary" not in tag:
            arena.refused(lambda folder=folder: RunRecord.read(folder), "run.yaml")


@form
def yaml_that_unfolds(arena: Arena) -> None:
    path = arena.inside / "sweep.yaml"
    laughs = "\n".join([f'l0: &l0 ["{"x" * 100}"]', *(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12))])
    for text in (
        laughs,
        f"name: x\narms:\n{CONFIG}" + laughs,
        "a: &a [*a]\n",
        "a: &a {<<: *a}\n",
        "a: " + "[" * 5000,
        "? " * 5000,
        "- " * 5000,
    ):
        path.write_text(text + "\n")
        arena.refused(lambda: _plan(arena, path))
        arena.refused(lambda: read_run_config(path, []))


NAMES = (
    "../up", "/abs", "a/b", "..", ".", "", "nul\0x", "new\nline", "$(touch C)", "`touch C`", "x; touch C", "'; touch C; '", "-rf", "--help",
    "\u0430blation", "a\u202eb", "\u2024\u2024/x", "x" * 300, "\x1b[31mred", "~root", "a\\b", "%j",
)  # fmt: skip


@form
def names_that_leave_the_sweeps_folder_or_reach_a_shell(arena: Arena) -> None:
    path = arena.inside / "sweep.yaml"
    for name in (name.replace("C", str(arena.canary)) for name in NAMES):
        path.write_text(f"name: {json.dumps(name)}\n{CONFIG}arms: {{a: {{}}}}\nseeds: 1\n")
        arena.refused(lambda: _plan(arena, path), "cannot name a folder")
        path.write_text(f"name: x\n{CONFIG}arms: {{{json.dumps(name)}: {{}}}}\nseeds: 1\n")
        arena.refused(lambda: _plan(arena, path))


@form
def folders_with_control_characters(arena: Arena) -> None:
    path = arena.inside / "run.yaml"
    for key in ("dir", "path"):
        for value in ("a\0b", "a\nb", "\x1b]0;title\x07"):
            path.write_text(f"data: {{{key}: {json.dumps(value)}}}\n")
            arena.refused(lambda: read_run_config(path, []), f"data.{key}")


@form
def records_that_name_other_folders(arena: Arena) -> None:
    for folder in ("../../outside", "/etc", "..", ".", "a/b", "", "a\0b", "\x1b[2J"):
        sweep = make_sweep(arena, folder)
        arena.refused(lambda sweep=sweep: Plan.read(sweep), "plan.json")
        assert status.main([str(sweep.path)]) == 2
    for name in ("../x", "\x1b[2J", "a\nb"):
        sweep = make_sweep(arena)
        Plan.read(sweep)
        value = json.loads(sweep.plan.read_text())
        value["runs"]["run"]["slug"] = name
        sweep.plan.write_text(json.dumps(value))
        arena.refused(lambda sweep=sweep: Plan.read(sweep), "plan.json")
    sweep = make_sweep(arena)
    value = json.loads(sweep.submission.read_text())
    for key in ("id", "code"):
        value["submissions"][0] = {**value["submissions"][0], "id": "0001", "code": "0001", key: "../../outside"}
        sweep.submission.write_text(json.dumps(value))
        arena.refused(lambda sweep=sweep: Submissions.read(sweep), "submission.json")


@form
def texts_of_a_site_in_its_script(arena: Arena) -> None:
    """Run under a real shell: whatever the site's words are, they stay words."""
    bin_folder = arena.inside / "bin"
    bin_folder.mkdir()
    (bin_folder / "srun").write_text("#!/bin/sh\nexit 0\n")
    (bin_folder / "srun").chmod(0o755)
    touches = [
        text.replace("C", str(arena.canary))
        for text in ("$(touch C)", "`touch C`", "a; touch C", "'; touch C; '", '"; touch C; "', "& touch C")
    ]
    for text in touches:
        site = _site(arena, text)
        code = arena.inside / text.replace("/", "_")
        script = sbatch_script.script(arena.inside / "logs", code, site, TaskShape(ranks=1, gpus=1), f"x-{text}", 2)
        subprocess.run(
            ["bash", "-c", script], env={"PATH": f"{bin_folder}:/usr/bin:/bin"}, cwd=arena.inside, capture_output=True, timeout=60
        )
        told = [line for line in script.splitlines() if line.startswith("#SBATCH")]
        assert len(told) == len({line.partition("=")[0] for line in told}), f"a line too many: {told}"
    for text in ("a\n#SBATCH --wrap=x", "a\rb", "a\0b", "a\u2028b"):
        for key in ("account", "comment", "qos", "constraint", "exclude", "gpu_type", "image"):
            site = replace(_site(arena, "plain"), **{key: text})
            arena.refused(
                lambda site=site: sbatch_script.check_script(arena.inside / "logs", arena.inside, site, TaskShape(ranks=1, gpus=1))
            )


def _site(arena: Arena, text: str) -> Site:
    return Site(
        name="x", account=text, qos=text, constraint=text, comment=text, exclude=text, gpu_type=text, container="apptainer",
        image=f"/images/{text}", data_dir=str(arena.inside / "data" / text.replace("/", "_")),
    )  # fmt: skip


@form
def odd_words_in_slurms_environment(arena: Arena) -> None:
    (arena.inside / "one.yaml").write_text("train: {device: cpu, epochs: 20}\n")
    for odd in ("../../../outside", "$(touch C)".replace("C", str(arena.canary)), "a b", "x\ny", "-1", "\x1b[2J"):
        told = {
            "SLURM_JOB_ID": odd,
            "SLURM_CLUSTER_NAME": odd,
            "SLURM_RESTART_COUNT": odd,
            "SLURM_ARRAY_JOB_ID": odd,
            "SLURM_ARRAY_TASK_ID": odd,
        }
        with environment(**told):
            sweep, task = single.sweep_of_one(arena.inside / "one.yaml", [], arena.inside / "runs")
            assert claims.this_process().restart_count == 0
        assert task.startswith("single/") and sweep.path == arena.inside / "runs" / "one"
        script = f"source {Path(single.__file__).with_name('requeue.sh')}; logs_of_one; end_task 75 60 {arena.inside}"
        subprocess.run(["bash", "-c", script], env={"PATH": "/usr/bin:/bin", **told}, cwd=arena.inside, capture_output=True, timeout=60)


# --- what people look at ---


@form
def escape_sequences_and_markup_in_what_is_shown(arena: Arena) -> None:
    sweep, evil = make_sweep(arena), "\x1b]0;owned\x07\x1b[2J\u202e<script>alert(1)</script>|x|\r\n# head"
    folder = RunFolder(path=sweep.path / "run")
    owner = Owner(host=f"node{evil}", pid=1)
    attempts.publish_claim(folder, Claim(generation=1, owner=owner, base=None))
    attempts.write_end(folder, 1, "crashed", reason=f"boom {evil}")
    (sweep.path / "hold.json").write_text(json.dumps({"since": 1.0, "by": evil, "reason": evil}))
    said = look_at(sweep) + (sweep.path / "table.md").read_text()
    odd = {character for character in said if not character.isprintable() and character != "\n"}
    assert odd == set(), f"a terminal would obey {odd!r}"
    assert "<script>" not in (sweep.path / "table.md").read_text(), said
    assert not any(line.startswith("# head") for line in said.splitlines()), said


def _plan(arena: Arena, path: Path) -> int:
    return launch(
        Request(sweep_file=path, overrides=("site=local",), runs_dir=arena.inside / "runs", dry_run=True), Console(file=io.StringIO())
    )
