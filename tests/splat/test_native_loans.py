"""Memory that is lent for large results: never to two at once, and used again."""

import os
import subprocess
import sys
import threading

import pytest
import torch

from splat.render.native import loans

MANY = loans.LARGE // 4


@pytest.fixture(autouse=True)
def no_spares(monkeypatch):
    monkeypatch.setattr(loans, "_spare", [])


def test_what_is_gone_is_used_again_and_what_is_held_is_not():
    first = loans.empty(MANY, 2)
    place = first.data_ptr()
    part = first[5:7]  # holds the memory, too
    del first
    other = loans.empty(MANY, 2)
    assert other.data_ptr() != place
    part.fill_(3)
    other.fill_(4)
    assert (part == 3).all() and other.shape == (MANY, 2) and other.dtype == torch.float32 and other.is_contiguous()
    del part
    assert loans.empty(MANY + 7, 2).data_ptr() == place  # a little more fits, too
    assert loans.empty(3, 4).shape == (3, 4) and loans.empty(0, 3).shape == (0, 3)


def test_a_gradient_keeps_its_memory():
    x = torch.zeros(MANY, requires_grad=True)
    gradient = loans.empty(MANY).fill_(2)
    x.backward(gradient)
    del gradient
    loans.empty(MANY).fill_(9)
    assert (x.grad == 2).all()


def test_no_more_is_kept_than_the_limits_say(monkeypatch):
    monkeypatch.setattr(loans, "SPARE_BYTES", 5 * loans.LARGE)
    held = [loans.empty((k + 1) * MANY) for k in range(3)]
    del held
    assert sum(map(len, loans._spare)) <= 5 * loans.LARGE
    monkeypatch.setattr(loans, "SPARE_BLOCKS", 1)
    held = [loans.empty(MANY) for _ in range(3)]
    del held
    assert len(loans._spare) == 1


def test_threads_never_share_a_block():
    wrong = []

    def work(name):
        for _ in range(50):
            x = loans.empty(MANY).fill_(name)
            y = loans.empty(MANY // 2 + name).fill_(-name)
            if not ((x == name).all() and (y == -name).all()):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_has_memory_of_its_own():
    code = (  # in a process without other threads
        "import os\n"
        "from splat.render.native import loans\n"
        f"spare, held = loans.empty({MANY}), loans.empty({MANY}).fill_(1)\n"
        "place = spare.data_ptr()\n"
        "del spare\n"
        "pid = os.fork()\n"
        f"mine = loans.empty({MANY}).fill_(3 if pid else 4)\n"
        "assert mine.data_ptr() == place\n"
        "if not pid:\n"
        "    held.fill_(2)\n"
        "    os._exit(0)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
        "assert (held == 1).all() and (mine == 3).all()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
