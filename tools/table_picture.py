"""Draws a sweep's table as its terminal shows it: python tools/table_picture.py runs/SWEEP docs/images/table.svg

The picture in README comes from here and from a real sweep. Computes nothing: hpc.comparison and hpc.table_screen do. One invariant: the
file loads nothing from outside, so it looks the same wherever it is shown.
"""

import io
import sys
from pathlib import Path

from rich.console import Console

from hpc.comparison import compare
from hpc.gather import gather
from hpc.table_screen import print_table

WIDTH = 100

# rich's own template fetches a font from the network; this is the same frame without it.
SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="comparison table of a sweep">
<style>
.{unique_id}-matrix {{ font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
.{unique_id}-matrix {{ font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-family: Helvetica, Arial, sans-serif; font-size: 18px; font-weight: bold; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def picture(sweep: Path) -> str:
    """The SVG text. Raises ToolkitError where the folder is no sweep."""
    comparison = compare(gather([sweep]), title=sweep.name)
    console = Console(record=True, file=io.StringIO(), width=WIDTH, force_terminal=True, color_system="truecolor", highlight=False)
    print_table(comparison, console)
    return console.export_svg(title=f"python -m hpc.collect {sweep}", code_format=SVG, unique_id="table")


def main() -> int:
    """Write the picture that the two arguments name."""
    if len(sys.argv) != 3:
        sys.exit("usage: python tools/table_picture.py runs/SWEEP OUT.svg")
    sweep, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(picture(sweep))
    print(f"wrote {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
