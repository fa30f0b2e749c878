"""Each notice once; the library's warnings only while a job listens."""

import logging

from app.notices import Notices


def test_notices_are_collected_once_and_told_once():
    notices = Notices()
    notices.add("a", "b", "a")
    assert notices.unsaid() == ["a", "b"]
    notices.add("b", "c")
    assert notices.unsaid() == ["c"] and notices.unsaid() == []


def test_warnings_of_the_library_are_notices_while_a_job_listens():
    notices, log = Notices(), logging.getLogger("recon.priors")
    with notices:
        log.warning("fell back to %s", "SIFT")
        log.warning("fell back to %s", "SIFT")
        log.info("detail")
    log.warning("later")
    assert notices.sentences == notices.logged == ["fell back to SIFT"]
