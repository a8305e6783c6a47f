"""`python -m hpc.launch`: validate a sweep, show its plan, and send what is missing, to SLURM or to this machine.

This file is the command line alone; hpc.launcher is the recipe. Nothing heavy is imported before the arguments are understood, so that
`--help` answers at once on a busy login node.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hpc.arguments import folder
from seresnet.command import run_command
from seresnet.errors import ToolkitError
from seresnet.help_text import HelpFormatter

_EXAMPLES = """\
examples:
  python -m hpc.launch --sweep configs/demo.yaml --local
  python -m hpc.launch --sweep configs/ablation.yaml --dry-run
  python -m hpc.launch --sweep configs/ablation.yaml optim.lr=0.05
  python -m hpc.launch --sweep configs/ablation.yaml --retry failed --code new

Launching again sends what is missing: runs that never started, were lost or stopped, or shall train longer now. Failed, diverged and \
cancelled ones need --retry. What was added to the file is sent; what was removed is left alone without --drop-removed.
--reproduce runs/ablation/RUN trains a finished run again on this machine, with its own code, into reproduced/ beside the sweep, and \
compares: 0 the same bits, 1 something differs (it says what), 2 it could not be trained.
exit: 0 sent, finished or nothing left; 1 something did not finish; 2 an error: nothing more was sent than what "sent ..." says.
"""

#: What these do is no launch; changes to the queue may be said together.
_ALONE = ("--new-site", "--explain", "--debug", "--reproduce")
_QUEUED = ("--alter", "--hold", "--release", "--cancel")
#: What only means something at a launch.
_LAUNCHING = ("--dry-run", "--wait", "--retry", "--code", "--rerun", "--drop-removed", "--smoke", "--calibrate")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; what a user, a cluster or a disk can cause is text and exit 2 (130: Ctrl-C), never a traceback."""
    args = build_parser().parse_intermixed_args(argv)
    try:
        _refuse_mixed(args)
        if args.new_site is not None:
            from hpc.new_site import new_site

            return new_site(args.new_site)
        if args.reproduce is not None:
            from hpc.reproduce import reproduce

            return reproduce(args.reproduce, args.runs_dir)
        _refuse_files(args.overrides)
        if args.sweep is None:
            raise UsageError("--sweep FILE is missing: the YAML of a sweep, such as configs/demo.yaml.")
        from hpc.launcher import Request, launch

        request = Request(
            sweep_file=args.sweep,
            overrides=tuple(args.overrides),
            runs_dir=args.runs_dir,
            dry_run=args.dry_run,
            local=args.local,
            max_parallel=args.max_parallel,
            retry=tuple(args.retry),
            explain=tuple(args.explain),
            wait=args.wait,
            max_gpus=args.max_gpus,
            code=args.code,
            rerun=tuple(args.rerun),
            drop_removed=args.drop_removed,
            renamed=args.renamed,
            smoke=args.smoke,
            calibrate=args.calibrate,
        )
        changes = {"alter": tuple(args.alter), "cancel": tuple(args.cancel), "hold": args.hold, "release": args.release}
        if any(changes.values()):
            from hpc.control import Changes, change_queued

            return change_queued(request, Changes(**changes))
        if args.debug is not None:
            from hpc.debug import debug_run

            return debug_run(request, args.debug)
        return launch(request)
    except UsageError as error:
        print(f"python -m hpc.launch: {error}", file=sys.stderr)
        return 2
    except ToolkitError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename}: {error.strerror}" if error.filename else error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


class UsageError(Exception):
    """A command line that asks for nothing."""


def _refuse_mixed(args: argparse.Namespace) -> None:
    """Options of which some would be overlooked in silence: `--hold --retry failed` retries nothing."""
    queued, alone, launching = (_given(args, names) for names in (_QUEUED, _ALONE, _LAUNCHING))
    doing = [*alone, *queued]
    if len(alone) + bool(queued) > 1 or {"--smoke", "--calibrate"} <= {*launching}:
        raise UsageError(f"{' and '.join(doing or ['--smoke', '--calibrate'])} are different things to do. Say one of them at a time.")
    if doing and doing != ["--explain"] and launching:
        raise UsageError(f"{doing[0]} launches nothing, so {' and '.join(launching)} would do nothing beside it. Say it at a launch.")

    if args.local and args.max_gpus:
        raise UsageError("--max-gpus caps what SLURM gives. Here: --max-parallel N tasks at a time.")


def _given(args: argparse.Namespace, options: Sequence[str]) -> list[str]:
    # An empty word is something, too: --debug "$RUN" must not launch where RUN is not set.
    return [option for option in options if getattr(args, option.strip("-").replace("-", "_")) not in (None, False, [])]


def _refuse_files(overrides: Sequence[str]) -> None:
    """A sweep's file where overrides stand: the first thing that people type."""
    for word in overrides:
        if "=" not in word and (word.endswith((".yaml", ".yml")) or Path(word).is_file()):
            raise UsageError(f"{word}: a sweep's file is given by --sweep: python -m hpc.launch --sweep {word}")


def build_parser() -> argparse.ArgumentParser:
    """The arguments; overrides may stand anywhere between the options."""
    parser = argparse.ArgumentParser(
        prog="python -m hpc.launch",
        description="Send the missing runs of a sweep to SLURM, or train them here.",
        epilog=_EXAMPLES,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--sweep", metavar="FILE", type=Path, help="the sweep's YAML, or a single run's")
    parser.add_argument("overrides", metavar="a.b=v", nargs="*", help="override a key of every run, or site.*, pack.*, wandb.*, seeds=")
    parser.add_argument(
        "--runs-dir",
        metavar="DIR",
        type=folder,
        help="where sweeps lie, or where this one lies now (default: the site's runs_dir, else runs)",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and what would be sent; write nothing")
    parser.add_argument("--local", action="store_true", help="train on this machine even if there is a SLURM")
    parser.add_argument("--max-parallel", metavar="N", type=_positive, help="local tasks at a time (default: as many as the cores hold)")
    parser.add_argument("--explain", metavar="KEY", action="append", default=[], help="print a key's value and where it comes from")
    parser.add_argument("--wait", action="store_true", help="stay until the SLURM jobs are over, showing progress")
    parser.add_argument("--max-gpus", metavar="N", type=_positive, help="GPUs that this sweep may use at a time")
    parser.add_argument("--new-site", metavar="NAME", help="write a site file from what this cluster says of itself")
    _add_again(parser.add_argument_group("launching again"))
    _add_careful(parser.add_argument_group("being careful"))
    _add_queued(parser.add_argument_group("changing what is queued (with --sweep; nothing is launched)"))
    return parser


def _add_again(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--retry", metavar="WHAT", action="append", default=[], help="failed, lost, cancelled, all, a run or an arm: send these alone"
    )
    group.add_argument("--code", choices=("snapshot", "new"), help="after the code was edited: go on with the old, or with the new")
    group.add_argument(
        "--rerun", metavar="RUN|all", action="append", default=[], help="set finished runs aside and train them again, with this code"
    )
    group.add_argument("--drop-removed", action="store_true", help="cancel what is queued of runs that the file no longer asks for")
    group.add_argument("--renamed", action="store_true", help="the sweep's file was moved or renamed: it is the same sweep")


def _add_careful(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--smoke", action="store_true", help="first 20 steps, save, resume and evaluate of every arm; the rest waits on it")
    group.add_argument("--calibrate", action="store_true", help="only time some steps of every arm, for the plan's estimates")
    group.add_argument("--debug", metavar="RUN", help="train one run in this process, where a debugger can stop it")
    group.add_argument("--reproduce", metavar="RUN", type=folder, help="train a finished run (its folder) again, and compare the bits")


def _add_queued(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--alter", metavar="site.key=value", nargs="+", default=[], help="change what queued tasks ask for")
    group.add_argument("--hold", action="store_true", help="start nothing more of this sweep until --release")
    group.add_argument("--release", action="store_true", help="undo --hold, and the hold after three runs that failed alike")
    group.add_argument("--cancel", metavar="RUN|all", action="append", default=[], help="cancel these runs, queued or running")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on. Use 1 or more")
    return int(text)


if __name__ == "__main__":
    run_command(main)
