"""A row of numbers as a word of little bars, for a column of a table. Pure; knows nothing of runs."""

from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
#: Where only ASCII can be shown; the higher, the more ink.
ASCII = "_.,-=+*#"


def sparkline(values: Sequence[float], *, is_ascii: bool, least_span: float) -> str:
    """A letter a value, from the lowest to the highest of them; one line of equal letters where they hardly differ.

    least_span: a difference that fills the whole height; smaller ones do not, or the noise of a run that has converged would look like
    progress.
    """
    if not values:
        return ""
    letters, low, high = ASCII if is_ascii else BLOCKS, min(values), max(values)
    span = max(high - low, least_span)
    # In the middle of the height where they fill less of it.
    floor = (low + high - span) / 2
    top = len(letters) - 1
    return "".join(letters[min(top, max(0, round((value - floor) / span * top)))] for value in values)
