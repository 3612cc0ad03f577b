"""random_reads.py FILE DEPTH SECONDS direct|buffered: read blocks of 4 KiB at random places, so many at a time, where there is no
fio. Prints what fio would, as far as it is looked at."""

import json
import mmap
import os
import random
import sys
import threading
import time

BLOCK = 4096


def main(file: str, depth: str, seconds: str, how: str) -> None:
    fd = os.open(file, os.O_RDONLY | (os.O_DIRECT if how == "direct" else 0))
    blocks = os.fstat(fd).st_size // BLOCK
    took: list[float] = []
    started = time.perf_counter()
    until = started + float(seconds)

    def read(number: int) -> None:
        chance, space = random.Random(number), mmap.mmap(-1, BLOCK)
        while (began := time.perf_counter()) < until:
            if os.preadv(fd, [space], chance.randrange(blocks) * BLOCK) != BLOCK:
                raise SystemExit("a block came back short")
            took.append(time.perf_counter() - began)

    threads = [threading.Thread(target=read, args=(number,)) for number in range(int(depth))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - started
    p99 = sorted(took)[len(took) * 99 // 100] * 1e9
    read_figures = {"total_ios": len(took), "runtime": elapsed * 1000, "clat_ns": {"percentile": {"99.000000": p99}}}
    print(json.dumps({"jobs": [{"jobname": "threads", "read": read_figures}]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
