r"""The comparison as a LaTeX table to paste or \input: booktabs, caption, label. Formats and nothing else.

Whatever an arm or a data set is called, the text compiles with pdflatex. One invariant: a table that is partial or mixed says so in its
caption, which no one who quotes it can overlook.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from hpc.comparison import Comparison
from hpc.metrics import DEFAULT
from hpc.stats import ArmSummary, Difference, Spread
from hpc.tables import NO_DIFFERENCE, caption, headline, lists, signed, size_text, sized
from seresnet.config import slug
from seresnet.errors import printable

_NONE = "--"
_ESCAPES = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
}
#: Letters that pdflatex knows without a package: Latin-1 and Latin Extended-A.
_LAST_LETTER = 0x17F


def latex(comparison: Comparison) -> str:
    """The whole of table.tex."""
    kinds = _kinds(comparison)
    heads, rows = _heads(comparison, kinds), [_row(comparison, arm, list(kinds.values())) for arm in comparison.arms]
    said = [headline(comparison.gathered), *caption(comparison)]
    said += [f"{title}: {entry}" for title, entries in lists(comparison) for entry in entries]
    lines = [
        *(f"% {_comment(text)}" for text in said),
        r"% Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}.",
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escape(_caption(comparison))}}}",
        rf"  \label{{tab:{slug(comparison.title)}}}",
        rf"  \begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        r"    \toprule",
        f"    {' & '.join(heads)} \\\\",
        r"    \midrule",
        *(f"    {' & '.join(row)} \\\\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text in which no letter is a command; letters that pdflatex would not know become their code points."""
    return "".join(_ESCAPES.get(letter, letter if _is_known(letter) else f"[U+{ord(letter):04X}]") for letter in _one_line(text))


def _is_known(letter: str) -> bool:
    return letter.isascii() or (ord(letter) <= _LAST_LETTER and unicodedata.category(letter).startswith("L"))


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())


def _comment(text: str) -> str:
    return "".join(letter if letter.isascii() else "?" for letter in _one_line(text.replace("±", "+-")))


def _caption(comparison: Comparison) -> str:
    """What a reader of the printed table must know; everything else that table.md says stands in comments above it."""
    first = headline(comparison.gathered)
    doubt = "" if first.startswith("Complete") and "MIXED" not in first else f" {first}"
    several = any(arm.n > 1 for arm in comparison.arms)
    what = "Test accuracy" if tuple(metric.name for metric in comparison.metrics) == DEFAULT else "Numbers of finished runs"
    data = {f"{row.result.data_name} ({row.result.test_images:,} test images)" for row in comparison.gathered.finished if row.result}
    on = f" on {' and '.join(sorted(data))}" if data else ""
    spread = ", mean ± sample standard deviation over n seeds" if several else ""
    interval = " [95 % interval of the paired t-test]" if several else ""
    paired = f"; difference to {comparison.baseline} at equal seeds{interval}" if len(comparison.arms) > 1 else ""
    biased = any(metric.name == "best_on_test_top1_pct" for metric in comparison.metrics)
    chosen = " Best-on-test chose its epoch on the test set, so it is biased upwards." if biased else ""
    return f"{comparison.title}.{doubt} {what}{on}{spread}{paired}.{chosen}"


def _heads(comparison: Comparison, kinds: Iterable[str]) -> list[str]:
    first = comparison.metrics[0]
    of = "" if first.name == DEFAULT[0] else f" of {first.heading}"
    units = [f" ({metric.unit})" if metric.unit else "" for metric in comparison.metrics]
    metrics = [f"{metric.heading}{unit}" for metric, unit in zip(comparison.metrics, units, strict=True)]
    texts = ["arm", "parameters", "multiply-adds", *metrics, f"difference{of} [95 % interval]", *kinds, "s/epoch"]
    heads = [escape(text) for text in texts]
    return [*heads[:3], "$n$", *heads[3:]]


def _row(comparison: Comparison, arm: ArmSummary, kinds: Sequence[str]) -> list[str]:
    first = comparison.metrics[0]
    seconds = arm.metrics["seconds_per_epoch"]
    return [
        escape(arm.arm),
        _joined([f"{count:,}" for count in arm.parameters]),
        _joined([size_text(count) for count in arm.multiply_adds]),
        f"${arm.n}$",
        *(_spread(arm.metrics[metric.name], arm.n, metric.digits) for metric in comparison.metrics),
        NO_DIFFERENCE if arm.is_baseline else _difference(arm.difference, first.digits),
        *(sized(arm.device_hours[kind]) if kind in arm.device_hours else _NONE for kind in kinds),
        sized(seconds.mean) if seconds else _NONE,
    ]


def _kinds(comparison: Comparison) -> dict[str, str]:
    """Heading -> kind of device, a column each."""
    names = {"gpu": "GPU-hours", "cpu": "CPU core-hours"}
    return {names[kind]: kind for kind in names if any(kind in arm.device_hours for arm in comparison.arms)}


def _joined(texts: Sequence[str]) -> str:
    return re.sub(r" ([GMk])\b", r"\\,\1", " / ".join(texts)) or _NONE


def _spread(value: Spread | None, of: int, digits: int) -> str:
    if value is None:
        return _NONE
    spread = "" if value.std is None else rf" \pm {value.std:.{digits}f}"
    return f"${value.mean:.{digits}f}{spread}$" + ("" if value.n == of else f" ($n={value.n}$)")


def _difference(value: Difference | None, digits: int) -> str:
    if value is None:
        return _NONE
    interval = "" if value.low is None or value.high is None else f" $[{signed(value.low, digits)}, {signed(value.high, digits)}]$"
    return f"${signed(value.mean, digits)}${interval} ({value.pairs} pair{'s' if value.pairs > 1 else ''})"
