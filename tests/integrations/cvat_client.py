"""Runs in the environment of cvat-sdk: its driver annotates a task with our function. Only the server is stood in for:
what the driver reads from it, and what it would upload. Arguments: a folder of images, an ontology."""

import json
import logging
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import cvat_sdk.auto_annotation as cvat
import cvat_sdk.models as models
from cvat_sdk.auto_annotation import driver
from cvat_sdk.masks import decode_mask
from PIL import Image

from text2seg.coco.rle import encode

folder, ontology = sys.argv[1:]
paths = sorted(Path(folder).iterdir())
function = import_module("text2seg.integrations.cvat").create(ontology=ontology, model="demo", device="cpu")
labels = [
    models.Label(id=100 + spec.id, name=spec.name, type="any", attributes=[], sublabels=[])
    for spec in function.spec.labels
]
samples = [
    SimpleNamespace(
        frame_name=path.name, frame_index=number, media=SimpleNamespace(load_image=lambda path=path: Image.open(path))
    )
    for number, path in enumerate(paths)
]
driver.TaskDataset = lambda *_, **__: SimpleNamespace(labels=labels, samples=samples)
uploaded = []
api = SimpleNamespace(update_annotations=lambda _, labeled_data_request: uploaded.append(labeled_data_request))
client = SimpleNamespace(logger=logging.getLogger("cvat"), tasks=SimpleNamespace(api=api))
names = {label.id: label.name for label in labels}
answer = {"version": version("cvat-sdk"), "masks": [], "polygons": [], "confident": []}
cvat.annotate_task(client, 1, function, clear_existing=True)
for shape in uploaded[-1].shapes:
    width, height = Image.open(paths[shape.frame]).size
    mask = decode_mask([float(each) for each in shape.points], image_width=width, image_height=height)
    answer["masks"].append([shape.frame, names[shape.label_id], encode(mask)])
cvat.annotate_task(client, 1, function, clear_existing=True, conv_mask_to_poly=True)
answer["polygons"] = [[shape.frame, names[shape.label_id], list(shape.points)] for shape in uploaded[-1].shapes]
cvat.annotate_task(client, 1, function, clear_existing=True, conf_threshold=1)
answer["confident"] = len(uploaded[-1].shapes)
sys.stdout.write(f"ANSWER {json.dumps(answer)}\n")
