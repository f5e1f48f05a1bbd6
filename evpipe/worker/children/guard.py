"""A tiny program that outlives its worker by a moment, to end the children that the worker left.

It is told of children on its standard input ("+123", "-123", a line each) and kills those that are left, with all that
they started, when its input ends, which it does when the worker is killed, however that happened. Run as a file,
without evpipe, and therefore soon there.
"""

import os
import runpy
import signal
import sys


def main() -> None:
    kill_tree = runpy.run_path(os.path.join(os.path.dirname(__file__), "killing.py"))["kill_tree"]  # noqa: PTH118, PTH120
    children: set[int] = set()
    for line in sys.stdin:
        (children.add if line[0] == "+" else children.discard)(int(line[1:]))
    for pid in children:
        kill_tree(pid)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    main()
