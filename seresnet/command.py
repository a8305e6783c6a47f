"""How a command of this project ends: what its stdout cannot take is told as that, and not as a fault of some file.

For what people type; ranks and tasks write into logs, which must never stop them. One invariant: a command that could not print all of
its answer ends with 2, unless whoever reads had enough.
"""

import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TextIO, cast

from seresnet.errors import OutputError


def run_command(main: Callable[[], int]) -> NoReturn:
    """End the process with what main returns, or with 2 where stdout is full or broken."""
    if sys.stdout is None:  # closed by the caller: prints go nowhere
        sys.exit(main())
    told = _Told(sys.stdout)
    sys.stdout = cast(TextIO, told)
    code: Any = 0
    try:
        code = _code_of(main)
        if not told.has_failed:
            told.flush()
    except OutputError as error:
        print(error, file=sys.stderr)
        code = 2
    except BrokenPipeError:  # `... | head`
        pass
    if told.has_failed:  # or the interpreter tries once more at its end, and complains
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(code)


def _code_of(main: Callable[[], int]) -> Any:
    try:
        return main()
    except SystemExit as left:  # argparse's
        return left.code


class _Told:
    """stdout, with errors that say that they are its own. A pipe that nobody reads stays a BrokenPipeError."""

    def __init__(self, inner: TextIO) -> None:
        self._inner = inner
        self.has_failed = False

    def write(self, text: str) -> int:
        try:
            return self._inner.write(text)
        except OSError as error:
            raise self._own(error) from error

    def flush(self) -> None:
        try:
            self._inner.flush()
        except OSError as error:
            raise self._own(error) from error

    def _own(self, error: OSError) -> OSError:
        self.has_failed = True
        if isinstance(error, BrokenPipeError):
            error.filename = "stdout"
            return error
        return OutputError(f"stdout: {error.strerror or error}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
