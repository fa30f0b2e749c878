"""OUT appears whole or not at all; OUT.partial is resumable; user's folders are left alone."""

import errno
import os
from pathlib import Path

import pytest

from app import result_folder
from app.result_folder import begin, check_out, disk_errors_as_sentences, is_complete, resume_flags, write_atomic
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
    (work.result / "scene.ply").write_text("new")
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
    done = check_out(out, resume=True, overwrite=True)
    if moment == 1:  # the new result was not yet said to be complete
        assert not done and (out / "scene.ply").read_text() == "old"
        work = begin(out, JOB, resume=True)
        assert (work.state / "fit.safetensors").read_text() == "kept"
        work.close()
    else:  # it is put in place now
        assert done and (out / "scene.ply").read_text() == "new"
        assert (out / "state" / "fit.safetensors").read_text() == "kept"
        assert [p.name for p in tmp_path.iterdir()] == ["R"]


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


def test_a_neighbouring_folder_of_the_user_is_left_alone(tmp_path):
    for name in ("R.old", "R.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text("years of work")
    with pytest.raises(InputError, match=r"R\.partial.* not ours"):
        check_out(tmp_path / "R", resume=False, overwrite=True)
    with pytest.raises(InputError, match="not ours"):
        begin(tmp_path / "R", JOB, resume=False)
    (tmp_path / "R.partial" / "report.json").unlink()
    assert not check_out(tmp_path / "R", resume=False, overwrite=False)
    finish(begin(tmp_path / "R", JOB, resume=False))
    finish(begin(tmp_path / "R", JOB, resume=False))
    assert (tmp_path / "R.old" / "report.json").read_text() == "years of work"


def test_an_interrupted_replacement_is_continued(tmp_path):
    out = tmp_path / "R"
    finish(begin(out, JOB, resume=False), "old")
    work = begin(out, JOB, resume=False)
    (work.state / "fit.safetensors").write_text("kept")
    work.close()
    assert resume_flags(out) == "--overwrite --resume"
    assert not check_out(out, resume=True, overwrite=True)
    with pytest.raises(InputError, match="--resume, to continue"):
        check_out(out, resume=False, overwrite=False)
    assert check_out(out, resume=True, overwrite=False)
    work = begin(out, JOB, resume=True)
    assert (work.state / "fit.safetensors").exists()
    finish(work, "new")
    assert (out / "scene.ply").read_text() == "new" and resume_flags(tmp_path / "S") == "--resume"


@pytest.mark.parametrize("out", [".", "/", "..", "a/.."])
def test_a_folder_without_a_name_of_its_own_is_refused(out):
    with pytest.raises(InputError, match="names no folder"):
        check_out(Path(out), resume=False, overwrite=True)


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
    with pytest.raises(StoppedLate, match="disk is full"), disk_errors_as_sentences(tmp_path / "R"):
        raise OSError(code, os.strerror(code))
    with pytest.raises(StoppedLate, match="Input/output error"), disk_errors_as_sentences(tmp_path / "R"):
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
