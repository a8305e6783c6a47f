"""What a command wrote, as lines for people: a path a line, and one entry for a folder of many files.

One invariant: every path stands whole in one line, so that it can be copied from a terminal of any width.
"""

import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from seresnet.errors import printable

_MOST_SINGLY = 6


def listing(written: Iterable[Path], columns: int) -> str:
    """'wrote' and the files, by folder, in the order in which the folders came; columns: of the terminal."""
    folders: dict[Path, list[Path]] = {}
    for path in written:
        folders.setdefault(path.parent, []).append(path)
    lines = [line for folder, paths in folders.items() for line in _of_folder(folder, paths, columns)]
    return printable("\n".join(["wrote", *lines]))


def _of_folder(folder: Path, paths: Sequence[Path], columns: int) -> list[str]:
    if len(paths) <= _MOST_SINGLY:
        return [f"  {path}" for path in paths]
    stems, suffixes = (list(dict.fromkeys(parts)) for parts in ([path.stem for path in paths], [path.suffix for path in paths]))
    # "a, b (png, svg)" only where there is each of them in each form.
    is_grid = len(paths) == len(stems) * len(suffixes)
    names = ", ".join(stems if is_grid else [path.name for path in paths])
    kinds = f" ({', '.join(suffix.removeprefix('.') for suffix in suffixes)})" if is_grid and any(suffixes) else ""
    indent = " " * 4
    folded = textwrap.wrap(
        names + kinds, max(columns, 20), initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return [f"  {folder}/", *folded]
