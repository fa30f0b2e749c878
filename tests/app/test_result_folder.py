"""OUT appears whole or not at all; OUT.partial is resumable; user's folders are left alone."""

import errno
import os

import pytest

from app import result_folder
from app.result_folder import begin, check_out, disk_errors_as_sentences, is_complete, write_atomic
from splat.errors import InputError, StoppedLate

JOB = {"seed": 0, "inputs": [["a.jpg", "00"]]}


def finish(work, text="new"):
    (work.result / "scene.ply").write_text(text)
    write_atomic(work.result / "report.json", b"{}")
    work.publish(keep_state=True)
    work.close()


def test_a_result_appears_when_published_and_not_before(tmp_path):
    out = tmp_path / "deep" / "R"
    work = begin(out, JOB, resume=False)
    assert not out.exists()
    finish(work)
    assert is_complete(out) and (out / "state").is_dir()
    assert [p.name for p in out.parent.iterdir()] == ["R"]


def test_without_state_when_compact(tmp_path):
    work = begin(tmp_path / "R", JOB, resume=False)
    (work.result / "report.json").write_text("{}")
    work.publish(keep_state=False)
    work.close()
    assert not (tmp_path / "R" / "state").exists()


def test_a_complete_result_is_refused_skipped_or_replaced(tmp_path):
    out = tmp_path / "R"
    finish(begin(out, JOB, resume=False), "old")
    with pytest.raises(InputError, match="--overwrite"):
        check_out(out, resume=False, overwrite=False)
    assert check_out(out, resume=True, overwrite=False)
    assert not check_out(out, resume=False, overwrite=True)
    work = begin(out, JOB, resume=False)
    assert (out / "scene.ply").read_text() == "old"  # until the new one is complete
    finish(work, "new")
    assert (out / "scene.ply").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["R"]


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_a_crash_while_replacing_loses_neither_the_old_nor_the_new(tmp_path, monkeypatch, moment):
    out = tmp_path / "R"
    finish(begin(out, JOB, resume=False), "old")
    work = begin(out, JOB, resume=False)
    (work.state / "fit.safetensors").write_text("kept")
    (work.result / "report.json").write_text("{}")
    calls, replace = [], os.replace

    def dies(a, b):
        calls.append(a)
        if len(calls) == moment:
            raise KeyboardInterrupt
        replace(a, b)

    monkeypatch.setattr(result_folder.os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        work.publish(keep_state=True)
    monkeypatch.undo()
    work.close()
    assert not check_out(out, resume=False, overwrite=True)  # puts the old result back
    assert (out / "scene.ply").read_text() == "old"
    work = begin(out, JOB, resume=True)
    assert (work.state / "fit.safetensors").read_text() == "kept"
    work.close()


def test_folders_that_are_no_results_are_left_alone(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("thesis", "file"):
        with pytest.raises(InputError):
            check_out(tmp_path / name, resume=False, overwrite=True)
    (tmp_path / "empty").mkdir()
    assert not check_out(tmp_path / "empty", resume=False, overwrite=False)
    finish(begin(tmp_path / "empty", JOB, resume=False))


def test_resuming_another_job_is_refused(tmp_path):
    begin(tmp_path / "R", JOB, resume=False).close()
    with pytest.raises(InputError, match="inputs, seed"):
        begin(tmp_path / "R", {"seed": 1, "inputs": []}, resume=True)
    (tmp_path / "R.partial" / "job.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        begin(tmp_path / "R", JOB, resume=True)


def test_resuming_keeps_state_and_starting_over_drops_it(tmp_path):
    work = begin(tmp_path / "R", JOB, resume=False)
    (work.state / "fit.safetensors").write_text("x")
    (work.result / "half.mp4").write_text("x")
    work.close()
    work = begin(tmp_path / "R", JOB, resume=True)
    assert (work.state / "fit.safetensors").exists() and not list(work.result.iterdir())
    work.close()
    work = begin(tmp_path / "R", JOB, resume=False)
    assert not list(work.state.iterdir())
    work.close()


def test_two_runs_do_not_share_a_folder(tmp_path):
    work = begin(tmp_path / "R", JOB, resume=False)
    with pytest.raises(InputError, match="Another run"):
        begin(tmp_path / "R", JOB, resume=True)
    work.close()
    begin(tmp_path / "R", JOB, resume=True).close()


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        begin(tmp_path / "file" / "R", JOB, resume=False)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_sentence(tmp_path, code):
    with pytest.raises(StoppedLate, match="disk is full"), disk_errors_as_sentences(tmp_path):
        raise OSError(code, os.strerror(code))
    with pytest.raises(StoppedLate, match="Input/output error"), disk_errors_as_sentences(tmp_path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    write_atomic(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(result_folder.os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
