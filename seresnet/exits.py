"""Exit codes of a rank and of a task: the only words in which training tells its supervisor how it ended.

torchrun turns every one of them into 1 (seen): under plain torchrun resume works, the codes do not.
"""

from enum import IntEnum


class Exit(IntEnum):
    """How a rank or a task ended. Anything else is a crash."""

    FINISHED = 0
    STOPPED = 75  # on request, state durable
    WATCHDOG = 76
    FENCED = 77  # another owner is newer
    USER_ERROR = 78
    DIVERGED = 79
    GPU_OUT_OF_MEMORY = 80


#: The word that records use for each code (design.md, "Endings").
ENDING_OF_EXIT: dict[int, str] = {
    Exit.FINISHED: "finished",
    Exit.STOPPED: "stopped",
    Exit.WATCHDOG: "hung",
    Exit.FENCED: "fenced",
    Exit.USER_ERROR: "user_error",
    Exit.DIVERGED: "diverged",
    Exit.GPU_OUT_OF_MEMORY: "out_of_memory",
}


def ending_of_status(status: int) -> str:
    """Name the ending of a process from its return code as subprocess gives it (negative = signal number)."""
    if status == -9:
        return "killed"
    return ENDING_OF_EXIT.get(status, "crashed")
