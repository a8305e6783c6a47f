"""What evaluation and averaged weights cost: the averaging pass against a loop and torch's AveragedModel, and folded batch norm.

Every network is the SE-ResNet with its channels last, on one thread. Ratios are taken round by round between neighbours in time.

    python bench/evaluate.py [--check] [--quick] [--json FILE]
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable

import torch
from measure import Report, alternate, amount, parser, speedup

from seresnet.config import ModelConfig
from seresnet.ema import WeightAverage
from seresnet.folding import FoldedNetwork
from seresnet.host_memory import keep_freed_memory
from seresnet.models import ResNet, build_model

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

#: A process of its own, for what is freed stays freed or kept for good: CPU seconds of four training steps and of three evaluations.
CHILD = """
import sys, time, torch
from seresnet.config import ModelConfig
from seresnet.host_memory import keep_freed_memory
from seresnet.models import build_model
torch.set_num_threads(1)
if sys.argv[1] == "kept":
    keep_freed_memory()
model = build_model(ModelConfig(width=16, attention="se"), 10, 0).to(memory_format=torch.channels_last)
def images(count):
    return torch.randn(count, 3, 32, 32).contiguous(memory_format=torch.channels_last)
def seconds(call, times):
    call()
    started = time.process_time()
    for _ in range(times):
        call()
    return time.process_time() - started
small, large = images(64), images(500)
print(seconds(lambda: model(small).sum().backward(), 4))
with torch.no_grad():
    print(seconds(lambda: model.eval()(large), 3))
"""


def main() -> int:
    args = parser(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    report = Report(script="evaluate.py")
    report.introduce()
    if DEVICE.type == "cpu":
        keep_freed_memory()  # as in every run
        freed_memory(report, args)
    averaging(report, args)
    share_of_a_step(report, args)
    widths = (16,) if args.quick else (16, 64)
    for width in widths:
        for amp in (False,) if args.quick else (False, True):
            folding(report, args, width, amp)
    batch_sizes(report, args)
    return report.finish(args)


def network(width: int) -> ResNet:
    return build_model(ModelConfig(width=width, attention="se"), 10, 0).to(DEVICE, memory_format=torch.channels_last)


def waiting(call: Callable[[], object]) -> Callable[[], None]:
    """The call, and whatever of it the device still has in hand."""

    def wait() -> None:
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return wait


def freed_memory(report: Report, args: argparse.Namespace) -> None:
    """CPU seconds, which the load of the machine hardly moves, of processes that keep freed memory and that do not, in turn."""
    rounds = 1 if args.quick else 3
    found: dict[str, list[list[float]]] = {"kept": [], "freed": []}
    for _ in range(rounds):
        for mode, seconds in found.items():
            done = subprocess.run([sys.executable, "-c", CHILD, mode], capture_output=True, text=True, check=True)
            seconds.append([float(line) for line in done.stdout.split()])
    for place, what in enumerate(("training steps of 64 images", "evaluation of 500 images")):
        ours, other = ([seconds[place] for seconds in found[mode]] for mode in ("kept", "freed"))
        report.row(f"freed memory kept, fp32, width 16: {what}, CPU time", speedup(ours, other), floor=(None, 1.1)[place])


def averaging(report: Report, args: argparse.Namespace) -> None:
    """One pass over 4.7 M parameters and the statistics of 25 norms."""
    model = network(64)
    ours = WeightAverage(model, 0.999)
    loop = [(value.clone(), value) for value in (v.detach() for v in model.state_dict().values()) if value.is_floating_point()]
    multi = torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
    theirs = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=multi, use_buffers=True)

    @torch.no_grad()
    def one_by_one() -> None:
        for average, value in loop:
            average.lerp_(value, 0.001)

    variants = {"ours": lambda: ours.update(10**6), "loop": one_by_one, "theirs": lambda: theirs.update_parameters(model)}
    seconds = alternate({name: waiting(call) for name, call in variants.items()}, 10 if args.quick else 60, warm_up=3)
    report.row("averaging, 4.7 M parameters: one pass", 1000 * statistics.median(seconds["ours"]), "ms")
    report.row("averaging, against lerp_ in a Python loop", speedup(seconds["ours"], seconds["loop"]), floor=0.95)
    report.row("averaging, against torch's AveragedModel", speedup(seconds["ours"], seconds["theirs"]), floor=1.2)


def share_of_a_step(report: Report, args: argparse.Namespace) -> None:
    """The pass beside forward, backward and SGD of a batch, which is small where there is no GPU."""
    width, count = (16, 64) if DEVICE.type == "cpu" else (64, 1024)
    model = network(width)
    average, sgd = WeightAverage(model, 0.999), torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = pictures(count), torch.zeros(count, dtype=torch.long, device=DEVICE)

    def step() -> None:
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        sgd.step()
        sgd.zero_grad()

    calls = {"step": waiting(step), "average": waiting(lambda: average.update(10**6))}
    seconds = alternate(calls, 3 if args.quick else 9)
    share = [100 * mine / (mine + whole) for mine, whole in zip(seconds["average"], seconds["step"], strict=True)]
    report.row(f"averaging, share of a step of {count} images, width {width}", amount(share), "%", ceiling=1.0)


def folding(report: Report, args: argparse.Namespace, width: int, amp: bool) -> None:
    """Batches of evaluation with and without batch norm folded; the folding itself is timed apart, it comes once for 10,000 images."""
    count = 500 if width == 16 or DEVICE.type == "cuda" else 100
    model = network(width).eval()
    folded = FoldedNetwork(model)
    images = pictures(count)

    def evaluate(module: torch.nn.Module) -> Callable[[], None]:
        @torch.no_grad()
        def call() -> None:
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=amp):
                module(images)

        return waiting(call)

    calls = {"plain": evaluate(model), "folded": evaluate(folded.network), "refresh": waiting(folded.refresh)}
    seconds = alternate(calls, 3 if args.quick else 7 if width == 16 else 5)
    name = f"evaluation, width {width}, {'bf16' if amp else 'fp32'}"
    images_per_s = count / statistics.median(seconds["folded"])
    report.row(f"{name}: folded against plain, batches of {count}", speedup(seconds["folded"], seconds["plain"]))
    report.row(f"{name}: images a second", images_per_s)
    refresh = 100 * statistics.median(seconds["refresh"]) / (10_000 / images_per_s)
    report.row(f"{name}: folding anew, share of 10,000 images", refresh, "%", ceiling=2.0)


def batch_sizes(report: Report, args: argparse.Namespace) -> None:
    """The same images in batches of other sizes, width 16 on a CPU and 64 on a GPU, against 500."""
    sizes = (125, 500) if args.quick else (125, 500, 1000) if DEVICE.type == "cpu" else (500, 1000, 2000, 5000)
    folded = FoldedNetwork(network(16 if DEVICE.type == "cpu" else 64).eval())
    folded.refresh()
    images = pictures(max(sizes) if not args.quick else 500)

    def evaluate(size: int) -> Callable[[], None]:
        @torch.no_grad()
        def call() -> None:
            with torch.autocast(DEVICE.type, torch.bfloat16):
                for start in range(0, len(images), size):
                    folded.network(images[start : start + size])

        return waiting(call)

    seconds = alternate({str(size): evaluate(size) for size in sizes}, 2 if args.quick else 5)
    for size in sizes:
        report.row(f"evaluation, bf16, batches of {size} against 500", speedup(seconds[str(size)], seconds["500"]))


def pictures(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 32, 32, generator=generator).to(DEVICE).contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    sys.exit(main())
