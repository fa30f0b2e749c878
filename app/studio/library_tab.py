"""Everything that this visitor has made and is making."""

from __future__ import annotations

from app.studio.job_view import JobView, job_view
from app.studio.quick_gradio import gr
from app.studio.studio import Studio
from app.studio.visitor import session_of


def library_tab(studio: Studio) -> tuple[JobView, gr.HTML]:
    """The view, and the line about the space used, which the page fills when the tab is opened."""
    used = gr.HTML(elem_id="library-used")
    view = job_view(studio, "library", "")
    return view, used


def space_used(studio: Studio, request: gr.Request) -> str:
    session, limits = session_of(request), studio.queue.limits
    jobs, taken = len(studio.queue.jobs(session)), studio.queue.used_bytes(session)
    if not jobs:
        return '<p class="ss-faint">Nothing here yet. What you make on the other tabs is kept here, for you alone.</p>'
    days = f" Finished jobs are deleted after {limits.expire_days:g} days." if limits.expire_days else ""
    count = "1 job" if jobs == 1 else f"{jobs} jobs"
    return f'<p class="ss-faint">{count}, {taken / 1e6:.0f} MB of the {limits.quota / 1e9:.0f} GB that you may use.{days}</p>'
