"""What a user or a cluster can cause. Every message names the place, the value, the rule and the fix.

Bugs of our own are assertions, never one of these.
"""


def printable(text: str) -> str:
    """The text without what a terminal would obey (escape sequences, NUL, text that runs backwards); line breaks and tabs stay."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in "\n\t" else repr(letter)[1:-1] for letter in text)


class ToolkitError(Exception):
    """Base of every error that a command prints as text, without a traceback. What it quotes may come from anybody's file."""

    def __str__(self) -> str:
        return printable(super().__str__())


class OutputError(ToolkitError, OSError):
    """What a command prints could not be written: a full disk below a redirection, for example."""


class ConfigError(ToolkitError):
    """A file, an override or a command line asks for something that cannot be."""


class CompileError(ConfigError):
    """The network could not be compiled. Of a process that was told to stop this says nothing: its compiler was told as well."""


class DataError(ToolkitError):
    """The data set is missing, damaged or not what the run was started with."""


class CheckpointError(ToolkitError):
    """A run folder holds checkpoints, and none of them can be trusted, or they belong to another config."""


class OwnedElsewhereError(ToolkitError):
    """Another process owns this run, and nothing proves that it is gone."""


class SubmissionError(ToolkitError):
    """The scheduler refused, or the plan breaks one of its limits."""
