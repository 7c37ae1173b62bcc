"""Outlives `paceline up` by a moment, so that nothing else does: run as a script by `processes.Group`.

It leads the process group that every child of `up` joins, grandchildren included, and waits for the end of the pipe
that only `up` holds. The pipe ends when `up` does, however it ends (kill -9 too); then the guard kills the group and
removes the folder of the run. Invariant: no child is started outside the group, so none is missed. Standard library
only, and little of it: the guard is one more interpreter.
"""

import os
import signal
import sys


def watch(folder: str) -> None:
    """Blocks until `up` is gone, then clears up. The group dies with its leader, so a fork outside it does the rest."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 1):
        pass
    group = os.getpgrp()
    if os.fork() == 0:
        os.setpgid(0, 0)
        os.killpg(group, signal.SIGKILL)
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
    signal.pause()


if __name__ == "__main__":
    watch(sys.argv[1])
