"""The files of COCO's server, made of bundled scenes."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

from text2seg.coco.dataset import read_dataset
from text2seg.coco.download import ARCHIVE, MEMBER

SCENES = Path(__file__).parents[1] / "text2seg" / "demo" / "scenes" / "new-scenes"


def coco_of_scenes(*, most_things: int | None = None) -> dict[str, bytes]:
    """Return COCO's archive and images by their paths: the bundled new scenes as val2017. One true mask is a crowd.

    `most_things`: leave out true masks beyond this many of an image.
    """
    truth = read_dataset(SCENES / "dataset.json")
    files, images = {}, []
    for number, entry in enumerate(truth["images"]):
        files[f"/val2017/{number}.jpg"] = (SCENES / entry["file_name"]).read_bytes()
        url = f"http://coco/val2017/{number}.jpg"
        images.append({**entry, "file_name": Path(entry["file_name"]).name, "coco_url": url})
    crowd = next(each for each in truth["annotations"] if each["image_id"] == images[0]["id"])
    kept = [
        each
        for image in images
        for each in [each for each in truth["annotations"] if each["image_id"] == image["id"]][:most_things]
    ]
    annotations = [{**each, "iscrowd": int(each is crowd and most_things is None)} for each in kept]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(MEMBER, json.dumps({**truth, "images": images, "annotations": annotations}))
    return {f"/{ARCHIVE}": buffer.getvalue(), **files}
