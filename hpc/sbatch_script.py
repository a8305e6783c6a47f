"""The sbatch script of an array: what the site and the shape ask for, and the command that starts a task. Pure text; nothing is sent.

submitit makes the text. The command is a chain of `exec` from srun to Python, through a container or not: a wrapper that waits for its
child would answer 143 where the child answers 75. One invariant: a site that check_script accepts gives a script that asks for what it
says, and nothing that the site wrote can end a line of it.
"""

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc.shapes import TaskShape
from hpc.site_keys import Site
from seresnet.errors import ConfigError

#: Options of sbatch that every script sets, beside those that a site's other keys ask for.
_OURS = ("array", "output", "error", "chdir", "workdir", "signal", "no-requeue", "ntasks", "wrap", "input", "requeue", "open-mode")


def script(
    folder: Path,
    code_dir: Path,
    site: Site,
    shape: TaskShape,
    job_name: str,
    tasks: int,
    *,
    dependency: str | None = None,
    parallel: int | None = None,
    visible: Sequence[Path] = (),
) -> str:
    """The sbatch script of an array of `tasks` tasks: what --dry-run prints and submit_array sends.

    dependency: as sbatch takes it, e.g. "afterok:123". parallel: tasks at a time, the smaller of it and the site's own cap counts.
    visible: further folders that a container must see, beside the sweep's and the site's. Raises ConfigError as check_script does.
    """
    # Here and not above: importing submitit takes longer than `launch --help` may.
    from submitit.slurm.slurm import _make_sbatch_string

    check_script(folder, code_dir, site, shape, visible=visible)
    parameters = _parameters(code_dir, site, shape, job_name)
    # The same end as sbatch/train.sh: a task in a container has no scontrol and cannot requeue itself, nor one that was killed.
    parameters["teardown"] = [f"end_task $? {site.signal_delay_s} {shlex.quote(str(folder.absolute()))}"]
    if dependency:
        # Else the array of a failed smoke test would wait for ever.
        parameters["additional_parameters"] |= {"dependency": dependency, "kill-on-invalid-dep": "yes"}
    if caps := [cap for cap in (parallel, site.array_parallelism) if cap]:
        parameters["array_parallelism"] = min(caps)
    command = _command(folder, code_dir, site, shape, visible)
    text = _make_sbatch_string(command, folder.absolute(), **parameters, map_count=tasks)
    assert isinstance(text, str)
    return text


def check_script(folder: Path, code_dir: Path, site: Site, shape: TaskShape, *, visible: Sequence[Path] = ()) -> None:
    """Raise ConfigError for every option that we set ourselves or that would not reach Slurm as it is meant. Writes nothing."""
    parameters = _parameters(code_dir, site, shape, "job")
    ours = {name.replace("_", "-") for name in parameters if name not in ("setup", "teardown", "additional_parameters", "srun_args")}
    ours |= {*_OURS} | ({"mail-type", "mail-user"} if site.mail else set())
    faults = [*_bad_options(site, ours), *_bad_texts(folder, site, parameters)]
    if site.container:
        faults += _bad_folders(site, _shown_folders(folder, code_dir, site, visible))
    if faults:
        raise ConfigError("\n".join(faults))


def comment_of(site: Site, shape: TaskShape) -> str | None:
    """What --comment says; the word for sharing a GPU joins only where runs share one."""
    mps = site.mps_comment if shape.gpus and shape.at_a_time > shape.gpus else None
    if isinstance(site.comment, Mapping):
        entries = [f"{key}={_word(value)}" for key, value in site.comment.items()]
    else:
        entries = [site.comment] if site.comment else []
    return ";".join([*entries, mps] if mps else entries) or None


def _word(value: str | int | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parameters(code_dir: Path, site: Site, shape: TaskShape, job_name: str) -> dict[str, Any]:
    gpu = f"{site.gpu_type}:{shape.gpus}" if site.gpu_type else str(shape.gpus)
    cpus = site.cpus_per_rank * shape.processes
    more = {name: value for name, value in site.sbatch.items() if value is not False}
    more |= {"requeue": True, "open-mode": "append", "chdir": str(code_dir.absolute())}
    if site.mail:
        # Of an array Slurm sends one message, when its last task has ended (seen), requeues included.
        more |= {"mail-type": "END,FAIL", "mail-user": site.mail}
    wanted: dict[str, Any] = {
        "job_name": job_name,
        "account": site.charged_account,
        "partition": ",".join(site.partitions) or None,
        "qos": site.qos,
        "constraint": site.constraint,
        "comment": comment_of(site, shape),
        "exclude": site.exclude,
        "gres": f"gpu:{gpu}" if shape.gpus and site.gpu_request == "gres" else None,
        "gpus_per_node": gpu if shape.gpus and site.gpu_request == "gpus_per_node" else None,
        "mem": f"{site.mem_gb_per_rank * shape.processes}G" if site.mem_gb_per_rank else None,
        "setup": _before(site),
    }
    return {
        **{name: value for name, value in wanted.items() if value is not None},
        "nodes": shape.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": cpus,
        "srun_args": _srun_args(cpus, shape),
        "time": site.walltime_min,
        "signal_delay_s": site.signal_delay_s,
        "stderr_to_stdout": True,
        "wckey": None,
        "additional_parameters": more,
    }


def _srun_args(cpus: int, shape: TaskShape) -> list[str]:
    # Since 22.05 srun does not inherit it from sbatch.
    args = [f"--cpus-per-task={cpus}"]
    # The supervisor of node 0 records the end and decides on the requeue: no site's default may have it killed when another's ends first.
    return [*args, "--kill-on-bad-exit=0", "--wait=0"] if shape.nodes > 1 else args


def _before(site: Site) -> list[str]:
    """Shell lines before srun, in the code snapshot. The batch shell outlives the stop signals, or nobody could look afterwards."""
    rule = "source hpc/requeue.sh || { echo 'no code snapshot in '\"$PWD\" >&2; exit 78; }"
    modules = [f"module load {shlex.quote(name)} || exit" for name in site.modules]
    setup = ["set -e", *site.setup, "set +e"] if site.setup else []
    # `python -m` must find the snapshot, which is our working directory.
    return ["trap : TERM USR1 USR2", rule, *modules, *setup, *_before_container(site), "unset PYTHONSAFEPATH"]


def _before_container(site: Site) -> list[str]:
    if not site.container:
        return []
    folders = [shlex.quote(str(path)) for path in _own_folders(site)]
    # A bind whose source is missing stops the container. Packages of ~/.local belong to the Python outside.
    return [*([f"mkdir -p {' '.join(folders)} || exit"] if folders else []), "export PYTHONNOUSERSITE=1"]


# --- the command ---


def _command(folder: Path, code_dir: Path, site: Site, shape: TaskShape, visible: Sequence[Path]) -> str:
    python = site.python or ("python" if site.container else shlex.quote(sys.executable))
    task = f"{python} -u -m submitit.core._submit {shlex.quote(str(folder.absolute()))}"
    if site.container:
        task = f"{_container(folder, code_dir, site, shape, visible)} {task}"
    # The stop signals are ignored until the worker's handlers are in: by default they kill, and submitit's start takes a second.
    # What was missed meanwhile the supervisor sees when it looks at its job.
    return f"""bash -c 'trap "" TERM USR1 USR2; exec "$@"' task {task}"""


def _container(folder: Path, code_dir: Path, site: Site, shape: TaskShape, visible: Sequence[Path]) -> str:
    """`apptainer exec ... IMAGE`: becomes the command inside, whose exit code is the container's."""
    words = [str(site.container), "exec", *(["--nv"] if shape.gpus else [])]
    if site.overlay:
        words += ["--overlay", f"{_for_shell(site.overlay.removesuffix(':ro'))}:ro"]
    for bind in site.binds:
        words += ["--bind", _for_shell(bind)]
    for path in _shown_folders(folder, code_dir, site, visible):
        words += ["--bind", shlex.quote(str(path))]
    return " ".join([*words, "--pwd", shlex.quote(str(code_dir.absolute())), _for_shell(str(site.image))])


def _shown_folders(folder: Path, code_dir: Path, site: Site, visible: Sequence[Path]) -> list[Path]:
    """What a task reads and writes and no bind of the site shows at the place that it has outside; none lies below another."""
    shown = [Path(place) for place in map(_same_place, site.binds) if place]
    ours: list[Path] = []
    for path in (folder.parent, code_dir, *_own_folders(site), *visible):
        # Both names of a folder behind a link: the script has the one, the worker's pickle the other.
        for name in dict.fromkeys((path.absolute(), path.resolve())):
            if not any(name.is_relative_to(other) for other in (*shown, *ours)):
                ours = [*(other for other in ours if not other.is_relative_to(name)), name]
    return ours


def _own_folders(site: Site) -> list[Path]:
    found = (site.folder("data_dir"), site.folder("cache_dir"))
    return [path.absolute() for path in found if path is not None]


def _same_place(bind: str) -> str | None:
    """The folder that a bind shows, writable and under its own name; None for a bind that does something else."""
    source, _, rest = os.path.expandvars(bind).partition(":")
    place, _, options = rest.partition(":")
    return source if place in ("", source) and "ro" not in options.split(",") else None


def _for_shell(text: str) -> str:
    """A word for the batch shell in which only $NAME and a leading ~ mean something; a variable that is not set there stops the task."""
    home = text.startswith("~/")
    parts = re.split(r"\$(?:\{(\w+)\}|(\w+))", text[1:] if home else text)
    words = ['"${HOME:?}"'] if home else []
    for index in range(0, len(parts), 3):
        words.append(shlex.quote(parts[index]) if parts[index] else "")
        if name := "".join(filter(None, parts[index + 1 : index + 3])):
            words.append(f'"${{{name}:?is not set on this node}}"')
    return "".join(words)


# --- faults ---


def _bad_options(site: Site, ours: set[str]) -> Iterator[str]:
    for name in site.sbatch:
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            yield f"{_label(site, name)}: {name!r} is not a long option of sbatch. Write it as `mail-type: END`."
        # sbatch takes any unambiguous beginning of an option for the option.
        elif taken := next((known for known in sorted(ours) if known.startswith(name.replace("_", "-"))), None):
            yield f"{_label(site, name)}: --{taken} is set by the toolkit. Remove it, or use the site's own key for it."


def _label(site: Site, option: str) -> str:
    place = site.places.get(f"sbatch.{option}")
    return f"{place}: site.sbatch.{option}" if place else f"site.sbatch.{option}"


def _bad_texts(folder: Path, site: Site, parameters: Mapping[str, Any]) -> Iterator[str]:
    if "%" in str(folder.absolute()):
        yield f"{folder.absolute()}: Slurm would expand the % in the names of its logs. Use a runs folder without one."
    chdir = parameters["additional_parameters"]["chdir"]
    containers = {"image": site.image, "overlay": site.overlay, **{f"binds: {bind}": bind for bind in site.binds}}
    texts = {**parameters, **site.sbatch, "python": site.python, "chdir": chdir, "folder": folder, **containers}
    for name, value in texts.items():
        if isinstance(value, str | Path) and not str(value).isprintable():
            yield f"site {site.name}: {name}: {str(value)!r} has a line break or a control character. Remove it."


def _bad_folders(site: Site, folders: Sequence[Path]) -> Iterator[str]:
    for path in folders:
        if re.search(r"[,:]", str(path)):
            yield f"{path}: a container cannot be shown a folder with `,` or `:` in its name. Use one without, or site.container=null."
