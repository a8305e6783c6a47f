"""Says in one line a fault why an environment cannot be made here, before a gigabyte has been downloaded.

Called by tools/setup.sh as `PYTHON preflight.py full|launcher VENV`. Its one invariant: it runs on the very Pythons that it
refuses, so no f-strings, no annotations, no pathlib, standard library only.
"""

import os
import sys

OLDEST = (3, 11)
GB = 10**9

# Measured on Linux x86_64, Python 3.11, constraints.txt of 0.1.0: 6,149 MiB and 45,470 inodes when done, and 3.0 GiB of wheels
# beside it until then. `import torch` under ulimit -v failed at 3.3 GB and worked at 3.5 GB; a control group counts only what is touched.
NEEDS = {
    "full": {"inodes": 46000, "bytes": 10 * GB, "memory": 3 * GB, "address_space": 4 * GB},
    "launcher": {"inodes": 6000, "bytes": GB // 5, "memory": GB // 2, "address_space": GB},
}


def faults(kind, facts):
    """One line for each thing that is missing. facts is what look() returns; kind is full or launcher."""
    need = NEEDS[kind]
    found = []
    if facts["version"] < OLDEST:
        text = "Python %s (%s) is too old, 3.11 or newer is needed. Name one: make %s PYTHON=/path/to/python3.11"
        found.append(text % (".".join(str(n) for n in facts["version"]), facts["python"], target(kind)))
    elif not facts["has_venv"]:
        text = "%s cannot make environments. Debian and Ubuntu: apt-get install python3-venv; elsewhere: make %s PYTHON=/path/to/python3.11"
        found.append(text % (facts["python"], target(kind)))
    for name, unit, shown in (("inodes", "inodes", 1), ("bytes", "GB of disk", GB)):
        if facts[name] is not None and facts[name] < need[name]:
            text = "%s %s are free in %s, %s are needed. Choose another place: make %s %s=/path/with/room"
            variable = "VENV" if kind == "full" else "LAUNCHER_VENV"
            found.append(text % (number(facts[name], shown), unit, facts["place"], number(need[name], shown), target(kind), variable))
    for name, limit in (("memory", "memory"), ("address_space", "address space (ulimit -v)")):
        if facts[name] is not None and facts[name] < need[name]:
            text = "this shell may use %s GB of %s, %s GB are needed%s"
            found.append(text % (number(facts[name], GB), limit, number(need[name], GB), elsewhere(kind)))
    return found


def elsewhere(kind):
    """A login node is the usual reason, so the line says what works there."""
    if kind == "launcher":
        return ". Use another node"
    return " (a login node?). Here: make launcher. On a compute node: sbatch --account=ME sbatch/setup.sh"


def target(kind):
    """The make target that asked."""
    return "setup" if kind == "full" else "launcher"


def number(value, unit):
    """12,345 inodes, 6.9 GB."""
    return "{:,d}".format(value) if unit == 1 else "%.1f" % (float(value) / unit)


def look(place):
    """What this machine offers below the folder place, which need not exist yet. None where it cannot be told."""
    place = os.path.abspath(place)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    disk = os.statvfs(place)
    return {
        "version": tuple(sys.version_info[:2]),
        "python": sys.executable,
        "has_venv": has_venv(),
        "place": place,
        "inodes": disk.f_favail if disk.f_files else None,  # btrfs and some network file systems count none: f_files is 0
        "bytes": disk.f_bavail * disk.f_frsize,
        "memory": min(cgroup_limits() or [None]),
        "address_space": address_space(),
    }


def has_venv():
    """Debian's python3 has venv without ensurepip until python3-venv is installed, so both are asked for."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return False
    return True


def address_space():
    """ulimit -v in bytes; None if nothing limits it."""
    try:
        import resource
    except ImportError:
        return None
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def cgroup_limits():
    """Every memory.max (version 2) and memory.limit_in_bytes (version 1) from this process's group up to the root."""
    limits = []
    try:
        with open("/proc/self/cgroup") as file:
            lines = file.read().splitlines()
    except (IOError, OSError):
        return limits  # macOS
    for line in lines:
        controllers, group = line.split(":", 2)[1:]
        if controllers not in ("", "memory"):
            continue
        base, name = ("/sys/fs/cgroup/memory", "memory.limit_in_bytes") if controllers else ("/sys/fs/cgroup", "memory.max")
        while True:
            limits.extend(read_limit(base + group.rstrip("/") + "/" + name))
            if group in ("", "/"):
                break
            group = os.path.dirname(group)
    return limits


def read_limit(path):
    """A list of one number, or none: no such file, "max", or version 1's way of saying unlimited."""
    try:
        with open(path) as file:
            text = file.read().strip()
    except (IOError, OSError):
        return []
    return [int(text)] if text.isdigit() and int(text) < 2**60 else []


def main():
    """Exit 1 with the faults on standard error."""
    kind, place = sys.argv[1:3]
    found = faults(kind, look(place))
    for line in found:
        sys.stderr.write("%s: %s\n" % (target(kind), line))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
