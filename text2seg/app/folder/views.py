"""Pieces of the page as HTML: what is wrong with an ontology, how far a job is, the contact sheet."""

from __future__ import annotations

from typing import Any

from text2seg.app.folder.editor import Checked
from text2seg.app.folder.jobs import Job, State
from text2seg.app.folder.sheet import Page
from text2seg.render.html import render_template

FAILURES, NAMES, SEGMENTS = 20, 12, 5  # so many are shown

BADGES: dict[State, str] = {
    "filling": "being read",
    "waiting": "waiting",
    "running": "at work",
    "stopped": "stopped",
    "done": "done",
    "failed": "failed",
}


def checked_html(checked: Checked) -> str:
    """The faults of an ontology or, where there is none, its categories."""
    names = checked.ontology.names if checked.ontology else ()
    return _render("checked", checked=checked, names=names, shown=NAMES)


def status_html(job: Job, ahead: int) -> str:
    """How far a job is. `ahead` is how many come before it."""
    return _render(
        "status",
        job=job,
        words={"badge": "stopping" if _is_stopping(job) else BADGES[job.state], "detail": _detail(job, ahead)},
        found=[each for each in job.report.categories if each.segments] if job.report else [],
        failures=tuple(job.failures),
        shown=FAILURES,
    )


def sheet_html(page: Page) -> str:
    """The pictures of a page of the contact sheet, with what can be decided about them."""
    return _render("sheet", page=page, shown=SEGMENTS)


def place_html(page: Page) -> str:
    """Which page of how many this is."""
    return _render("place", page=page)


def tally_html(job: Job) -> str:
    """How many pictures were decided about, and how."""
    accepted, rejected = job.decisions.count("accepted"), job.decisions.count("rejected")
    labelled = job.report.found + job.report.empty if job.report else 0
    return _render(
        "tally",
        accepted=accepted,
        rejected=rejected,
        segments=len(job.decisions.segments),
        open=labelled - accepted - rejected,
    )


def _detail(job: Job, ahead: int) -> str:
    if job.state == "waiting":
        return f"{ahead} job{'s' * (ahead != 1)} before this one" if ahead else "next in the queue"
    if job.state == "running" and not _is_stopping(job):
        return _left(job.seconds_left)
    if job.report and job.state == "done":
        report = job.report
        return f"{report.found} with segments, {report.empty} without, {report.failed} failed"
    return {"stopped": "what is done is kept; the job can go on", "running": "after the pictures at work"}.get(
        job.state, ""
    )


def _left(seconds: float | None) -> str:
    if seconds is None:
        return "the first pictures are under way"
    if seconds < 90:
        return f"about {max(1, round(seconds))} s left"
    minutes = round(seconds / 60)
    return f"about {minutes} min left" if minutes < 90 else f"about {seconds / 3600:.1f} h left"


def _is_stopping(job: Job) -> bool:
    return job.state == "running" and job.stop.is_set()


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _render(part: str, **values: Any) -> str:
    return render_template("text2seg.app.folder", {"number": _number}, part=part, **values)
