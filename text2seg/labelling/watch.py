"""`label --watch`: label the images that arrive in a folder, until somebody stops it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from dataclasses import replace

from text2seg.config import LabelSettings
from text2seg.errors import ImageError
from text2seg.io.storage import Place, Stamp
from text2seg.labelling.engine import Engine
from text2seg.labelling.job import LabelReport, label_folder, scan_folder
from text2seg.ontology import Ontology
from text2seg.session import Pipeline

SECONDS = 2.0
"""Time between two looks at the folder."""

_log = logging.getLogger(__name__)


def watch(
    models: Pipeline,
    folder: Place,
    ontology: Ontology,
    settings: LabelSettings,
    *,
    stop: threading.Event,
    engine: Engine | None = None,
    seconds: float = SECONDS,
) -> Iterator[LabelReport]:
    """Label a folder, and again each time its images have changed; yield the report of each time.

    A change counts once two looks in a row see the same names, sizes and times, so that a file is complete before it is
    read. Only new and changed images are labelled, as in a job that is resumed. A folder may be empty at first.

    Args:
        stop: if set, the current batch is finished, and the iteration ends.
        seconds: time between two looks.

    Raises:
        QueryError, OntologyError, SettingsError, OutputError: as `label_folder`.
    """
    done: dict[str, Stamp] = {}
    before: dict[str, Stamp] = {}
    while not stop.is_set():
        now = _images(folder, settings)
        if now and now == before and now != done:
            try:
                yield label_folder(models, folder, ontology, settings, progress=True, stop=stop, engine=engine)
                settings = replace(settings, restart=False)
            except ImageError as error:  # for example, none of the images can be read
                _log.warning("%s", error)
            done = now
        before = now
        stop.wait(seconds)


def _images(folder: Place, settings: LabelSettings) -> dict[str, Stamp]:
    """Return the stamps of the images of a folder by their names; empty if there are none."""
    try:
        scan = scan_folder(folder, settings)
    except ImageError as error:
        _log.info("%s", error)
        return {}
    return {file: scan.stamp(index) for index, file in enumerate(scan.files)}
