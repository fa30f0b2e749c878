"""How long `splatsmith ui` takes until its page answers: each time a new process, with the jobs of an empty folder.

    python benchmarks/studio_start.py                       five starts
    python benchmarks/studio_start.py --starts 9 --json studio.json

Wall seconds from the start of the process until GET / answers 200, and CPU seconds of the process with its end. Figures from
a busy machine are worthless: the load average is printed and written. The first start may read the packages from the disk.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

PATIENCE = 120.0  # seconds
LOOK_EVERY = 0.02  # seconds between tries


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def answers(port: int) -> bool:
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        line.request("GET", "/")
        answer = line.getresponse()
        answer.read()
        return answer.status == 200
    except OSError:
        return False
    finally:
        line.close()


def start(root: Path) -> tuple[float, float]:
    """Wall seconds until the page answered, and CPU seconds of the process with its end."""
    port = free_port()
    words = [sys.executable, "-m", "app", "ui", "--quiet", "--root", root, "--port", port]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen([str(word) for word in words], cwd=Path(__file__).parents[1])
    try:
        while not answers(port):
            if process.poll() is not None or time.perf_counter() - began > PATIENCE:
                raise SystemExit("The page did not answer.")
            time.sleep(LOOK_EVERY)
        seconds = time.perf_counter() - began
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, load average {load:.1f}")
    wall, cpu = [], []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(args.starts):
            seconds, work = start(Path(folder) / f"root-{i}")
            wall.append(seconds)
            cpu.append(work)
            print(f"start {i + 1}: {seconds:.2f} s ({work:.2f} s of CPU)", flush=True)
    print(f"median {statistics.median(wall):.2f} s until the page answers ({statistics.median(cpu):.2f} s of CPU)")
    if args.json:
        machine = {"cores": os.cpu_count(), "load": load, "python": platform.python_version(), "gradio": version("gradio")}
        rows = {"wall_s": wall, "cpu_s": cpu, "median_wall_s": statistics.median(wall)}
        args.json.write_text(json.dumps({"machine": machine, **rows}, indent=1))


if __name__ == "__main__":
    main()
