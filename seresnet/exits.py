"""Exit codes of a rank and of a task, and what becomes of a run after each ending: the words in which attempts are spoken of.

torchrun turns every code into 1 (seen): under plain torchrun resume works, the codes do not. Requeueing within a task has budgets
of its own (hpc.requeue).
"""

from enum import IntEnum
from typing import Literal

After = Literal["finished", "interrupted", "cancelled", "failed"]


class Exit(IntEnum):
    """How a rank or a task ended. Anything else is a crash."""

    FINISHED = 0
    STOPPED = 75  # on request; goes on from what is durable
    WATCHDOG = 76
    FENCED = 77  # another owner is newer
    USER_ERROR = 78
    DIVERGED = 79
    GPU_OUT_OF_MEMORY = 80


#: The word that records use for each code.
ENDING_OF_EXIT: dict[int, str] = {
    Exit.FINISHED: "finished",
    Exit.STOPPED: "stopped",
    Exit.WATCHDOG: "hung",
    Exit.FENCED: "fenced",
    Exit.USER_ERROR: "user_error",
    Exit.DIVERGED: "diverged",
    Exit.GPU_OUT_OF_MEMORY: "out_of_memory",
}


#: Every ending that is ever written, and what it says of a run whose result is still to come. interrupted: nothing was wrong with the
#: run, a later attempt goes on. cancelled: by its user or the site; only --retry takes it again. failed: a person must look. finished:
#: the attempt was complete, so its result was moved away, or more epochs are asked for now.
AFTER_ENDING: dict[str, After] = {
    "finished": "finished",
    "preempted": "interrupted",
    "timed_out": "interrupted",
    "node_failed": "interrupted",
    "stopped": "interrupted",
    "fenced": "interrupted",
    "unknown": "interrupted",
    "interrupted": "interrupted",
    "cancelled": "cancelled",
    "cancelled_by_site": "cancelled",
    "crashed": "failed",
    "killed": "failed",
    "hung": "failed",
    "out_of_memory": "failed",
    "user_error": "failed",
    "diverged": "failed",
}


def after_ending(ending: str) -> After:
    """What an ending means for a run without its result; a word of another version is for a person to look at."""
    return AFTER_ENDING.get(ending, "failed")


def ending_of_status(status: int) -> str:
    """Name the ending of a process from its return code as subprocess gives it (negative = signal number)."""
    if status == -9:
        return "killed"
    return ENDING_OF_EXIT.get(status, "crashed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the GPU or the host ran out, in the words of torch, CUDA, cuBLAS, NCCL and Python."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    words = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory", "Cannot allocate memory")
    return isinstance(error, RuntimeError | OSError) and any(word in str(error) for word in words)


def is_gpu_fault(reason: str) -> bool:
    """Whether a crash is one that takes the GPU's other users along where they share a context (MPS)."""
    words = ("CUDA error", "CUDA_ERROR", "CUDNN_STATUS_EXECUTION_FAILED", "CUBLAS_STATUS_EXECUTION_FAILED", "device-side assert")
    return any(word in reason for word in words)
