"""What squeeze-and-excitation costs: a step of the SE network against the baseline's, all else equal, and against SE as usually written.

The ratio is seconds of SE by seconds of the baseline: 1.05 is a tax of 5 %. On a GPU the network is compiled and 1.05 is the ceiling.
"""

import argparse
import sys

import torch
from measure import Report, alternate, parser, speedup
from step import our_step, plain_block, plain_network, plain_step, run_config


def tax(report: Report, args: argparse.Namespace, width: int, batch: int, amp: str, device: torch.device) -> None:
    """One line for ours and one for the plain form, of one precision."""
    cuda = device.type == "cuda"
    steps, compiled = (10 if cuda else 1), cuda or args.compile
    made = {name: run_config(width, batch, device, attention=name, amp=amp, compile=compiled) for name in ("se", "none")}
    variants = {name: our_step(run, device, steps) for name, run in made.items()}
    eager = run_config(width, batch, device, amp=amp)
    variants["plain se"] = plain_step(plain_network(width, eager.model.blocks, plain_block), eager, device, steps)
    rounds = 1 if args.quick else 30 if cuda else 5 if width > 32 else 15
    seconds = alternate(variants, rounds, 2 if cuda else 1)
    limit = {"ceiling": 1.05} if cuda else {}
    report.row(f"width {width}, {amp}: SE's step by the baseline's", speedup(seconds["none"], seconds["se"]), **limit)
    report.row(f"width {width}, {amp}: plain SE's step (NCHW, eager) by our baseline's", speedup(seconds["none"], seconds["plain se"]))


def main() -> int:
    made = parser(__doc__ or "")
    made.add_argument("--compile", action="store_true", help="on the CPU, too: compiling takes a minute for each precision")
    args = made.parse_args()
    report = Report(script="se_tax.py")
    report.introduce()
    torch.set_num_threads(1)
    if torch.cuda.is_available():
        for amp in ("bf16", "fp16"):
            tax(report, args, 64, 1024, amp, torch.device("cuda"))
        return report.finish(args)
    for width, batch in ((16, 64),) if args.quick else ((16, 64), (64, 32)):
        for amp in ("off", "bf16"):
            tax(report, args, width, batch, amp, torch.device("cpu"))
    return report.finish(args)


if __name__ == "__main__":
    sys.exit(main())
