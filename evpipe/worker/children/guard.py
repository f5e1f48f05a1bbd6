"""A tiny program that outlives its worker by a moment, to end the children that the worker left.

It is told of process groups on its standard input ("+123", "-123", a line each) and kills those that are left when
its input ends, which it does when the worker is killed, however that happened. Run as a file, without evpipe.
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    groups: set[int] = set()
    for line in sys.stdin:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    main()
