"""Cores that a process may use under control groups of either version."""

import math

import pytest

from splat.render.native.cores import cgroup_quota, usable_cores
from splat.render.native.library import thread_count


@pytest.fixture
def groups(tmp_path):
    """write(file, text) under a pretended /sys/fs/cgroup; quota(lines of /proc/self/cgroup)."""

    def write(name: str, text: str) -> None:
        file = tmp_path / "sys" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def quota(*lines: str) -> float:
        own = tmp_path / "own"
        own.write_text("".join(line + "\n" for line in lines))
        return cgroup_quota(tmp_path / "sys", own)

    return write, quota


def test_version_2_takes_the_tightest_of_group_and_parents(groups):
    write, quota = groups
    assert quota("0::/job/step") == math.inf  # nothing mounted
    write("cpu.max", "max 100000\n")
    assert quota("0::/job/step") == math.inf
    write("job/cpu.max", "150000 100000\n")
    assert quota("0::/job/step") == 1.5
    write("job/step/cpu.max", "400000 100000\n")
    assert quota("0::/job/step") == 1.5
    assert quota("0::/") == math.inf


def test_version_1_finds_the_mount_by_its_controllers(groups):
    write, quota = groups
    write("cpu,cpuacct/job/cpu.cfs_quota_us", "50000\n")
    write("cpu,cpuacct/job/cpu.cfs_period_us", "100000\n")
    write("cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    write("cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    assert quota("9:name=systemd:/", "4:cpu,cpuacct:/job", "3:memory:/job") == 0.5
    assert quota("4:cpu,cpuacct:/") == math.inf
    assert quota("3:memory:/job") == math.inf


def test_in_a_container_the_mounts_root_counts_although_the_path_is_the_hosts(groups):
    write, quota = groups
    write("cpu/cpu.cfs_quota_us", "300000")
    write("cpu/cpu.cfs_period_us", "100000")
    assert quota("4:cpu,cpuacct:/docker/0123") == 3
    write("cpu.max", "200000 100000")
    assert quota("0::/../../docker/0123", "4:cpu,cpuacct:/docker/0123") == 3
    assert quota("0::/docker/0123") == 2


@pytest.mark.parametrize("text", ["", "nonsense", "10 0", "-5"])
def test_unreadable_limits_are_no_limits(groups, text):
    write, quota = groups
    write("cpu.max", text)
    write("cpu/cpu.cfs_quota_us", text)
    assert quota("0::/", "1:cpu:/") == math.inf


def test_no_control_groups(tmp_path):
    assert cgroup_quota(tmp_path, tmp_path / "missing") == math.inf


def test_threads_asked_for_are_used_and_the_default_stays_within_the_cores():
    assert thread_count(3) == 3 and thread_count(0) == 1
    assert 1 <= thread_count(None) <= usable_cores()
