"""What a visitor decided about the pictures and segments of a job, and the dataset that is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Json = Mapping[str, Any]
Verdict = Literal["accepted", "rejected"]


@dataclass(slots=True)
class Decisions:
    """Verdicts by file name, and the ids of annotations that are rejected. What nobody decided about stays."""

    pictures: dict[str, Verdict] = field(default_factory=dict)
    segments: set[int] = field(default_factory=set)

    def decide(self, file_name: str, verdict: Verdict | None) -> None:
        """`None` takes a verdict back."""
        if verdict is None:
            self.pictures.pop(file_name, None)
        else:
            self.pictures[file_name] = verdict

    def keep_segment(self, number: int, *, keep: bool) -> None:
        (self.segments.discard if keep else self.segments.add)(number)

    def count(self, verdict: Verdict) -> int:
        return sum(each == verdict for each in self.pictures.values())

    def apply(self, dataset: Json) -> dict[str, Any]:
        """The dataset without what is rejected: a picture goes with all its annotations, an annotation goes alone.
        Ids stay as they are, and `info.review` says what was decided."""
        names = {image["id"]: image["file_name"] for image in dataset["images"]}
        kept = {number for number, name in names.items() if self.pictures.get(name) != "rejected"}
        review = {
            "accepted": sorted(name for name, verdict in self.pictures.items() if verdict == "accepted"),
            "rejected": sorted(name for name, verdict in self.pictures.items() if verdict == "rejected"),
            "rejected_annotations": sorted(self.segments),
        }
        return {
            **dataset,
            "info": {**dataset["info"], "review": review},
            "images": [image for image in dataset["images"] if image["id"] in kept],
            "annotations": [
                each for each in dataset["annotations"] if each["image_id"] in kept and each["id"] not in self.segments
            ],
        }
