"""Runs in the environment of ultralytics: trains a segmentation model on our export for one epoch, from random weights.
Arguments: data.yaml and a folder for the run."""

import json
import math
import sys

import ultralytics
from ultralytics.models.yolo.segment import SegmentationTrainer

settings, folder = sys.argv[1:]
overrides = {"model": "yolo11n-seg.yaml", "data": settings, "project": folder, "name": "run", "device": "cpu"}
overrides |= {"epochs": 1, "imgsz": 64, "batch": 2, "workers": 0, "plots": False, "amp": False, "pretrained": False}
trainer = SegmentationTrainer(overrides=overrides)
trainer.train()
labels = trainer.train_loader.dataset.labels
answer = {
    "version": ultralytics.__version__,
    "names": [trainer.data["names"][number] for number in sorted(trainer.data["names"])],
    "polygons": {
        label["im_file"].rpartition("/")[2]: [
            [int(kind), each.tolist()] for kind, each in zip(label["cls"][:, 0], label["segments"], strict=True)
        ]
        for label in labels
    },
    "finite": len(trainer.tloss) > 2 and all(math.isfinite(float(loss)) for loss in trainer.tloss.values()),
    "weights": trainer.last.exists(),
}
sys.stdout.write(f"\nANSWER {json.dumps(answer)}\n")
