"""The supervisor of one task as a process: python supervise.py SWEEP. Its ranks are those of hanging_rank.py."""

import logging
import sys
from pathlib import Path

from hpc import supervisor
from hpc.paths import SweepFolder
from seresnet.signals import StopFlag

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    stop = StopFlag()
    stop.install()
    command = (sys.executable, str(Path(__file__).with_name("hanging_rank.py")), "{run_dir}")
    sys.exit(supervisor.run_task(SweepFolder(Path(sys.argv[1])), "0001/0", stop=stop, rank_command=command))
