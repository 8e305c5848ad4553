"""`python -m themis_core.worker CONTROL_FD PARENT_PID`: how a supervisor starts a worker."""

from __future__ import annotations

import faulthandler
import logging
import sys

if __name__ == "__main__":
    # A native crash leaves the Python stack in the log that the parent keeps: that of the thread
    # that crashed, for reading the others while they run can crash once more, with another signal.
    faulthandler.enable(all_threads=False)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    from themis_core.worker.host import main

    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
