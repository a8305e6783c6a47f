"""What a user or a cluster can cause. Every message names the place, the value, the rule and the fix.

Bugs of our own are assertions, never one of these.
"""


class ToolkitError(Exception):
    """Base of every error that a command prints as text, without a traceback."""


class ConfigError(ToolkitError):
    """A file, an override or a command line asks for something that cannot be."""


class DataError(ToolkitError):
    """The data set is missing, damaged or not what the run was started with."""


class CheckpointError(ToolkitError):
    """A run folder holds checkpoints, and none of them can be trusted, or they belong to another config."""


class OwnedElsewhereError(ToolkitError):
    """Another process owns this run, and nothing proves that it is gone."""


class SubmissionError(ToolkitError):
    """The scheduler refused, or the plan breaks one of its limits."""
