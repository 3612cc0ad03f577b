"""sequential.py write|read FILE SOURCE: write FILE with what SOURCE has, by the MiB and with an fsync at its end; or read FILE,
and compare it with SOURCE afterwards. Prints a line for each MiB, and at last the seconds and whether it was right."""

import os
import sys
import time

MIB = 2**20


def main(what: str, file: str, source: str) -> None:
    with open(source, "rb") as known:
        content = memoryview(known.read())
    if what == "write":
        took = _write(file, content)
        print(took, "right")
        return
    # Its pages are touched before, or their first use would be timed too.
    space = bytearray(b"\1") * len(content)
    took = _read(file, memoryview(space))
    print(took, "right" if space == content else "wrong")


def _write(file: str, content: memoryview) -> float:
    started = time.perf_counter()
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for offset in range(0, len(content), MIB):
        part = content[offset : offset + MIB]
        while part:
            part = part[os.write(fd, part) :]
        print(offset, flush=True)
    os.fsync(fd)
    os.close(fd)
    return time.perf_counter() - started


def _read(file: str, space: memoryview) -> float:
    started = time.perf_counter()
    fd = os.open(file, os.O_RDONLY)
    offset = 0
    while offset < len(space) and (got := os.preadv(fd, [space[offset : offset + MIB]], offset)):
        offset += got
        print(offset, flush=True)
    os.close(fd)
    return time.perf_counter() - started


if __name__ == "__main__":
    main(*sys.argv[1:])
