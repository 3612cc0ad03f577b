"""`python prober.py FILE`: for each line on stdin one write to the file, and the time when it was answered (time.monotonic()), or
its error, on stdout. The file stays open: its handle is one that outlives everything. At the end it says how often it wrote."""

import os
import sys
import time


def main() -> None:
    file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
    count = 0
    print("ready", flush=True)
    for _ in sys.stdin:
        try:
            os.pwrite(file, f"{count + 1:010}".encode(), 0)
            count += 1
            # A write alone may be answered ahead of the client.
            os.fsync(file)
            print(time.monotonic(), flush=True)
        except OSError as error:
            print(f"{error.errno} {error}", flush=True)
    os.close(file)
    print(count, flush=True)


if __name__ == "__main__":
    main()
