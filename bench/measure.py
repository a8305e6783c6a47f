"""What the benchmarks share: variants timed in turn within one run, their ratios with spread, a table, JSON, and floors.

A ratio is taken round by round between neighbours in time, so that a machine that slows down slows both. One invariant: a ratio is
always ours against a named alternative; seconds are printed beside it but never judged across runs.
"""

import argparse
import atexit
import json
import math
import os
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Ratios of n rounds: their median, and the quartiles as spread (the ends where there are fewer than four)."""

    median: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.median:.3g}x ({self.low:.3g} to {self.high:.3g}, n = {self.n})"


class Amount(Ratio):
    """As many of something: no ratio, and no x behind it."""

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g} to {self.high:.4g}, n = {self.n})"


def alternate(variants: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each call of each variant, in turn; every other round in reverse order, so that none always goes second.

    The callables wait for their device themselves. warm_up: calls of each before the first that counts.
    """
    for call in variants.values():
        for _ in range(warm_up):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in list(variants)[:: -1 if number % 2 else 1]:
            started = time.perf_counter()
            variants[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def speedup(ours: Sequence[float], other: Sequence[float]) -> Ratio:
    """How many times faster ours is than the other, round by round."""
    assert len(ours) == len(other), f"{len(ours)} rounds of ours, {len(other)} of the other"
    return spread([theirs / mine for mine, theirs in zip(ours, other, strict=True)])


def spread(values: Sequence[float]) -> Ratio:
    """Median and quartiles."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 3 else [min(values), 0.0, max(values)]
    return Ratio(median=statistics.median(values), low=quartiles[0], high=quartiles[2], n=len(values))


def amount(values: Sequence[float]) -> Amount:
    """Median and quartiles of what is no ratio."""
    return Amount(**asdict(spread(values)))


@dataclass(kw_only=True)
class Report:
    """Rows as they come, and which floors were missed."""

    script: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def row(
        self, what: str, value: Ratio | float | str, unit: str = "", *, floor: float | None = None, ceiling: float | None = None
    ) -> None:
        """One line of the table. floor, ceiling: what the median must reach or keep below; judged by --check only."""
        middle = value.median if isinstance(value, Ratio) else value
        # Written so that a value that is no number misses its limit.
        missed = not isinstance(middle, str) and not ((floor is None or middle >= floor) and (ceiling is None or middle <= ceiling))
        limit = f"floor {floor:g}" if floor is not None else f"at most {ceiling:g}" if ceiling is not None else ""
        verdict = f"   [{limit}: {'MISSED' if missed else 'met'}]" if limit else ""
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
        print(f"{what:<64} {text} {unit}".rstrip() + verdict, flush=True)
        shown = _for_json(asdict(value) if isinstance(value, Ratio) else value)
        self.rows.append({"what": what, "value": shown, "unit": unit, "floor": floor, "ceiling": ceiling, "missed": missed})
        if missed:
            self.missed.append(what)

    def introduce(self, text: str = "") -> dict[str, Any]:
        """Say on what this runs: machine, load, commit, versions. From here on Ctrl-C and SIGTERM end the script through its `finally`s."""
        end_in_order()
        import torch

        if not torch.cuda.is_available():
            leave_no_compile_cache()

        from seresnet import provenance

        device = torch.cuda.get_device_name() if torch.cuda.is_available() else provenance.cpu_model()
        load = " ".join(f"{value:.1f}" for value in os.getloadavg())
        facts = {"device": device, "cores": os.cpu_count(), "load": load, "commit": provenance.commit(), "torch": torch.__version__}
        print(f"{self.script}: " + ", ".join(f"{key} {value}" for key, value in facts.items()), flush=True)
        if text:
            print(text, flush=True)
        self.facts = facts
        return facts

    def finish(self, args: argparse.Namespace) -> int:
        """Write the JSON that --json asks for; the exit code: 1 where --check was asked for and a floor was missed."""
        if args.json:
            content = {"script": self.script, "machine": getattr(self, "facts", {}), "rows": self.rows, "missed": self.missed}
            args.json.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        if self.missed:
            print(f"{len(self.missed)} missed: {'; '.join(self.missed)}", file=sys.stderr)
        return int(bool(args.check and self.missed and not args.quick))


def end_in_order() -> None:
    """Turn the first SIGINT or SIGTERM into SystemExit, so that folders and processes go; later ones must not stop that."""

    def end(number: int, _: object) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, end)


def leave_no_compile_cache() -> None:
    """torch.optim makes inductor's folder in the temporary one even where nothing is compiled: here and in children, one that goes."""
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="bench-inductor-")
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def _for_json(value: Any) -> Any:
    """JSON has no word for what is not finite."""
    if isinstance(value, dict):
        return {key: _for_json(each) for key, each in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _new_file(text: str) -> Path:
    """Where --json goes; refused before minutes are spent, not after."""
    path = Path(text).absolute()
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text} cannot be written: name a file in a folder that exists and is writable")
    return path


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--check", action="store_true", help="exit 1 where a floor is missed")
    made.add_argument("--json", metavar="FILE", type=_new_file, help="write the rows there, too")
    made.add_argument("--quick", action="store_true", help="a few rounds only, to try it out: floors are not judged")
    return made
