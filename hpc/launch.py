"""`python -m hpc.launch`: validate a sweep, show its plan, and send what is missing, to SLURM or to this machine.

This file is the command line alone; hpc.launcher is the recipe. Nothing heavy is imported before the arguments are understood, so that
`--help` answers at once on a busy login node.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from seresnet.errors import ToolkitError

_EXAMPLES = """\
examples:
  python -m hpc.launch --sweep configs/demo.yaml --local
  python -m hpc.launch --sweep configs/ablation.yaml --dry-run
  python -m hpc.launch --sweep configs/ablation.yaml optim.lr=0.05 site.walltime_min=240

Launching again sends what is missing: runs that never started, were lost or were cancelled by you.
exit: 0 sent, finished or nothing left; 1 something did not finish; 2 an error: nothing more was sent than what "sent ..." says.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; what a user, a cluster or a disk can cause is text and exit 2 (130: Ctrl-C), never a traceback."""
    args = build_parser().parse_intermixed_args(argv)
    try:
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
        )
        return launch(request)
    except ToolkitError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename}: {error.strerror}" if error.filename else error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The arguments; overrides may stand anywhere between the options."""
    parser = argparse.ArgumentParser(
        prog="python -m hpc.launch",
        description="Send the missing runs of a sweep to SLURM, or train them here.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sweep", metavar="FILE", type=Path, required=True, help="the sweep's YAML, or a single run's")
    parser.add_argument("overrides", metavar="a.b=v", nargs="*", help="override a key of every run, or site.*, pack.*, wandb.*, seeds=")
    parser.add_argument("--runs-dir", metavar="DIR", type=Path, help="where sweeps lie (default: the site's runs_dir, else runs)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and what would be sent; write nothing")
    parser.add_argument("--local", action="store_true", help="train on this machine even if there is a SLURM")
    parser.add_argument("--max-parallel", metavar="N", type=_positive, help="local tasks at a time (default: as many as the cores hold)")
    parser.add_argument("--retry", metavar="WHAT", action="append", default=[], help="failed, lost, all or a run: send these alone")
    parser.add_argument("--explain", metavar="KEY", action="append", default=[], help="print a key's value and where it comes from")
    parser.add_argument("--wait", action="store_true", help="stay until the SLURM jobs are over, showing progress")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of tasks. Use 1 or more")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
