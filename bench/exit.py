"""What it costs to end a process that has torch loaded: as Python does it, with frozen objects, and at once.

python bench/exit.py   # a minute; CPU seconds of the whole process, median of five
"""

import resource
import statistics
import subprocess
import sys

START = "import gc, os, sys, torch; from fastdiffusion import load; "
ENDS = {"sys.exit": "sys.exit(0)", "gc.freeze, sys.exit": "gc.freeze(); sys.exit(0)", "os._exit": "os._exit(0)"}


def seconds(end: str) -> float:
    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = spent()
    subprocess.run([sys.executable, "-c", START + end], check=True)
    return spent() - before


if __name__ == "__main__":
    laps = [{name: seconds(end) for name, end in ENDS.items()} for _ in range(5)]
    for name in ENDS:
        print(f"{name:20} {statistics.median(lap[name] for lap in laps):.2f} s")
