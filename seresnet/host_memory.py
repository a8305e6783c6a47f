"""Freed memory stays with the process, where the C library lets us ask for that: what a step frees, the next one takes again.

Which runs want it is assembly.py's business. One invariant: no bit of a result depends on it, and where it cannot be had nothing happens.
"""

import ctypes
import sys

#: Of glibc's malloc.h: what is free at the heap's end goes back to the system from here on; allocations that get pages of their own.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Whether it was granted. The process then keeps the most memory that it ever had.

    Otherwise glibc gives a large activation back the moment it is free, and its next one costs a page fault every 4 KiB: an evaluation
    takes 1.2 times the CPU time (n = 5 pairs of processes, width 16, batches of 500: 1.1 to 1.35 in float32, 1.15 to 1.3 in bf16). A
    step of 64 images, whose activations glibc keeps anyway, takes the same. Price: up to a quarter more resident memory, not growing.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
