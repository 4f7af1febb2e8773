"""Settings of a labelling job and of where it runs; flags are made from these too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from text2seg.config import check_choices, freeze_texts
from text2seg.errors import SettingsError
from text2seg.storage import Url, place_of


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """A labelling job: which files of the folder, where to, and how."""

    output: Url | Path = Path("dataset.json")
    """The COCO file, a path or a URL. A journal (.journal) beside it keeps what is done, so that a stopped job goes on;
    that of a URL lies in the user's state folder, or in TEXT2SEG_STATE."""
    segmentation: Literal["rle", "polygon"] = "rle"
    """How masks stand in the COCO file: rle is lossless, polygon is what labelling tools want."""
    recursive: bool = True
    """Look through the folders in the folder as well."""
    glob: tuple[str, ...] = ()
    """Only files of this pattern, such as "*.jpg" or "front/*"; repeat for more. Default: all that Pillow reads."""
    limit: int | None = None
    """Only the first so many files, in the order of their paths."""
    shard: str = ""
    """Only a part of the files: 2/5 is the second of five. Give each shard an output of its own."""
    batch: int = 4
    """Images that go through the models at once; more need more memory."""
    workers: int = 4
    """Threads that read and decode pictures."""
    categories_from: Url | Path | None = None
    """Take the ids of categories and images from this COCO file, for instance the ground truth to compare with; a path
    or a URL."""
    keep_candidates: bool = False
    """Write the masks that SAM offered and that were not chosen as well, into attributes.candidates."""
    restart: bool = False
    """Throw away what an earlier run of this job has done."""
    only_if_present: bool = False
    """Do not look for anything in images that, by a vector index of the folder, show none of the categories; they stand
    in the COCO file without annotations. The index is made first, or brought up to date (`text2seg search`)."""
    skip_below: float = 0.1
    """The presence, from 0 to 1, that every category must stay below in the index for an image to be left out so."""
    index: Path | None = None
    """The folder that indexes are kept in. Default: one in your cache folder."""
    retry_failures: bool = False
    """Try images again that failed in an earlier run."""
    overwrite: bool = False
    """Write over an output that this job did not make."""

    def __post_init__(self) -> None:
        check_choices(self)
        freeze_texts(self, "glob")
        object.__setattr__(self, "output", place_of(self.output))
        if self.categories_from is not None:
            object.__setattr__(self, "categories_from", place_of(self.categories_from))
        if not 0 <= self.skip_below <= 1:
            raise SettingsError(f"skip below must be in [0, 1], got {self.skip_below}")
        for name in ("limit", "batch", "workers"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1) and (name != "limit" or value is not None):
                raise SettingsError(f"{name} must be a whole number of 1 or more, got {value!r}")


@dataclass(frozen=True, slots=True)
class RaySettings:
    """The workers of `--engine ray`: processes of a Ray cluster that each hold the models."""

    address: str | None = None
    """A Ray cluster that is there: host:port of its head, or auto for the one that this machine belongs to. Default: a
    Ray of its own on this machine, which ends with the job."""
    min_workers: int = 1
    """Workers that are kept all the time."""
    max_workers: int = 1
    """Workers at most: between the two, Ray adds and removes some as there is work and room."""
    cpus_per_worker: int = 1
    """CPUs that are set aside for each worker; torch computes with as many threads."""
    gpus_per_worker: float = 0.0
    """GPUs that are set aside for each worker; with 0.5 two share one, and one can read pictures while the other
    computes. The worker's device is --device as on one machine."""

    def __post_init__(self) -> None:
        for name in ("min_workers", "max_workers", "cpus_per_worker"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise SettingsError(f"{name.replace('_', ' ')} must be a whole number of 1 or more, got {value!r}")
        if self.max_workers < self.min_workers:
            raise SettingsError(f"max workers ({self.max_workers}) must not be below min workers ({self.min_workers})")
        share = self.gpus_per_worker
        if not 0 <= share < float("inf") or (share > 1 and share != int(share)):
            raise SettingsError(f"gpus per worker must be a part of one GPU or a whole number of them, got {share}")
