"""How --help lays out what stands around its options: paragraphs that fold at the terminal's width.

In a description or an epilog a line is a paragraph. An indented one hangs: its continuation begins two letters further, or below its
second column. One invariant: words are never changed, lost or broken.
"""

import argparse
import re
import textwrap

_LEAST_COLUMN = 30  # letters of a second column; with fewer, the whole width is used


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """argparse's, with its raw texts folded."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(folded(indent + line, width) for line in text.splitlines())


def folded(line: str, width: int) -> str:
    """One line as several of at most so many letters; a word that is longer stays whole."""
    columns = re.match(r" +\S+(?: \S+)*  +", line)
    hang = len(line) - len(line.lstrip())
    hang = columns.end() if columns and columns.end() <= width - _LEAST_COLUMN else hang + 2 * (hang > 0)
    return textwrap.fill(line, width, subsequent_indent=" " * hang, break_long_words=False, break_on_hyphens=False)
