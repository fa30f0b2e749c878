"""Batches of toys on a Ray cluster of two workers on this machine: what dies is made again, and nothing twice."""

import importlib.util
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from toy_batch import Toys, write_toys

from app.batch import read_batch
from app.cluster import connect, places
from app.result_folder import is_complete
from splat.errors import BackendUnavailable, InputError

ROOT = Path(__file__).parents[2]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs ray: pip install ".[cluster]"')
ALONE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen on the loopback address alone
    "RAY_USAGE_STATS_ENABLED": "0",  # report to nobody
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "app")]),  # where the toys are, on every node
}

SCRIPT = """
import os, signal, sys, time
from functools import partial
from pathlib import Path
from toy_batch import Toys, items_of
from app.batch import BatchConfig, run_batch
from app.cluster import RayCrew, connect, places
from app.result_folder import is_complete

address, tmp, what = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
while connect(address).get("CPU", 0) < 2:  # its node joins a moment after the address answers
    time.sleep(0.2)
assert places(connect(address), threads=1, gpus=0) == 2
toys, items = Toys(tmp / "diary", pause=0.2), items_of(tmp / "toys", tmp / "out")
complete = {item.out for item in items if is_complete(item.out)}
config = BatchConfig(jobs=2, retries=1, item_seconds=8)
job, killed = run_batch(tmp / "out", items, partial(RayCrew, toys, 1), config, complete=complete), False
for event in job:
    if event.stage == "batch" and event.step >= 3 and what == "kill" and not killed:
        os.kill(int(toys.lines("began")[-1][2]), signal.SIGKILL)
        killed = True
    if event.stage == "batch" and event.step >= 6 and what == "kill":
        job.close()
"""


@pytest.fixture(scope="module")
def address():
    """Of a cluster that is a set of processes apart from the one that works on it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="ray-")  # short: Ray puts sockets there
    words = "--head --num-cpus=2 --include-dashboard=false --node-ip-address=127.0.0.1 --object-store-memory=100000000 --block"
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", *words.split(), f"--port={port}", f"--temp-dir={folder}"]
    head = subprocess.Popen(ray, env=os.environ | ALONE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            assert head.poll() is None
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0 and list(Path(folder).glob("session_*/sockets/raylet")):
                    break
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()
        head.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def work(address: str, tmp_path: Path, what: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, tmp_path / "script.py", address, tmp_path, what]
    done = subprocess.run(words, env=os.environ | ALONE, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


@needs_ray
@pytest.mark.slow
def test_a_cluster_loses_nothing_and_makes_nothing_twice(address, tmp_path):
    """Workers that die by themselves and by a kill from outside, an item that hangs, a cancelled batch that goes on."""
    plain = {f"n{i:02}": "" for i in range(12)}
    folder = write_toys(
        tmp_path / "toys", **plain, bad="corrupt", dies="dies", late="dies-late", poison="always-dies", stuck="hangs"
    )
    work(address, tmp_path, "kill")
    written = read_batch(tmp_path / "out")
    assert written["status"] == "cancelled" and 6 <= written["counts"]["total"] - written["counts"]["cancelled"] <= 10

    work(address, tmp_path, "finish")
    written = read_batch(tmp_path / "out")
    status = {row["name"]: row["status"] for row in written["items"]}
    errors = {row["name"]: row["error"] for row in written["items"] if row["error"]}
    made = {*plain, "dies", "late"}
    assert {name for name, s in status.items() if s in ("done", "skipped")} == made
    assert {name for name in status if is_complete(tmp_path / "out" / name)} == made
    assert "no toy" in errors["bad"] and "crashed at each of 2 attempts" in errors["poison"] and "8 s" in errors["stuck"]
    toys = Toys(tmp_path / "diary")
    assert sorted(name for name, _ in toys.lines("made")) == sorted(made), "each once"
    began = [name for name, *_ in toys.lines("began")]
    assert len(began) > len(set(began)) and len(list(folder.iterdir())) == len(status)


@needs_ray
@pytest.mark.slow
def test_nodes_that_cannot_read_the_job(address, tmp_path):
    """A maker in a module that only this machine has is one sentence, not three dead workers."""
    write_toys(tmp_path / "toys", a="")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "only_here.py").write_text((ROOT / "tests" / "app" / "toy_batch.py").read_text())
    script = SCRIPT.replace("from toy_batch import", "sys.path.insert(0, sys.argv[2] + '/here')\nfrom only_here import")
    (tmp_path / "script.py").write_text(script)
    words = [sys.executable, tmp_path / "script.py", address, tmp_path, "finish"]
    done = subprocess.run(words, env=os.environ | ALONE, capture_output=True, text=True, timeout=100)
    assert "InputError: A node of the cluster cannot read the job (" in done.stderr and "only_here" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "[::1]:{}", "127.0.0.1:99999"])
def test_no_cluster_at_an_address(monkeypatch, address):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match=r"^--cluster \S+ does not answer \(.+\); check the address"):
            connect(address.format(taken.getsockname()[1]))


def test_room_on_a_cluster():
    assert places({"CPU": 7.0}, threads=2, gpus=0) == 3
    assert places({"CPU": 64.0, "GPU": 4.0}, threads=2, gpus=1) == 4
    for resources, threads, gpus in (({"CPU": 3.0}, 4, 0), ({"CPU": 3.0}, 1, 1), ({}, 1, 0)):
        with pytest.raises(InputError, match=r"fewer --threads( or --device cpu)?\.$"):
            places(resources, threads, gpus)


def test_without_ray_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendUnavailable, match=r'pip install "splatsmith\[cluster\]"'):
        connect("auto")
