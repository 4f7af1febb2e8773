"""COCO val2017 from COCO's server: the annotations, and of the images only those that are needed."""

from __future__ import annotations

import logging
import os
import random
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

from PIL import Image as PillowImage

from text2seg.coco.dataset import read_dataset
from text2seg.coco.reader import size_of
from text2seg.errors import CheckpointError, DatasetError, OutputError
from text2seg.io.files import is_file, reason
from text2seg.io.writing import make_folder, write_atomically
from text2seg.weights import folder as checkpoint_folder
from text2seg.weights.download import RemoteFile, download_files, locked

log = logging.getLogger(__name__)

SERVER_VARIABLE = "TEXT2SEG_COCO_SERVER"
SERVER = "http://images.cocodataset.org"
ARCHIVE = "annotations/annotations_trainval2017.zip"
MEMBER = "annotations/instances_val2017.json"
ARCHIVE_MB, IMAGE_MB = 253, 0.163
"""Size of the archive, and mean size of the 5,000 images, in megabytes."""
LICENCE = (
    "The annotations are CC BY 4.0 (COCO Consortium). The images belong to their photographers, each under the Flickr "
    "licence that the annotations name; COCO's terms of use are at cocodataset.org/#termsofuse"
)
CHUNK = 1 << 20
_NAME = re.compile(r"[\w-]+\.jpg")
_URL = re.compile(r"https?://[^\s/]+(?P<path>/[^\s?#]+)")
_SERVER = re.compile(r"https?://([\w.-]+|\[[\da-fA-F:.]+\])(:\d+)?(/\S*)?")


def default_folder() -> Path:
    """Return the folder of COCO's files, which may not exist yet."""
    return checkpoint_folder() / "coco"


def announcement(images: int, folder: Path) -> str:
    """Return what a download of this many images needs, for people, before it starts."""
    have = is_file(folder / Path(MEMBER).name, CheckpointError)
    annotations = "" if have else f"the annotations of COCO 2017 ({ARCHIVE_MB} MB) and "
    megabytes = max(round(images * IMAGE_MB), 1)
    return f"downloading {annotations}up to {images} images (about {megabytes} MB) to {folder}. {LICENCE}"


def fetch_val2017(images: int, folder: Path, *, seed: int = 0, to_score: bool = False) -> tuple[dict[str, Any], Path]:
    """Return annotations of `images` images of val2017 that show something, and the folder of these images.

    The images are drawn with `seed`, those to calibrate with from one half of val2017 and those to score (`to_score`)
    from the other, so that no card is scored on images that it was fitted to. If a half has too few, the rest is drawn
    from the other half, and a warning is logged. More images contain those of fewer. What is in the folder is not
    downloaded again, and a stopped download continues. The environment variable `TEXT2SEG_COCO_SERVER` names another
    server.

    Raises:
        CheckpointError: the server cannot be reached, or does not send COCO's files.
        DatasetError: the annotations cannot be read.
    """
    server, path = _server(), folder / Path(MEMBER).name
    truth = read_dataset(_annotations(path, server))
    shown = {each["image_id"] for each in truth["annotations"] if not each.get("iscrowd")}
    entries = sorted((each for each in truth["images"] if each["id"] in shown), key=lambda each: str(each["file_name"]))
    random.Random(0).shuffle(entries)  # the halves do not depend on the seed
    halves = entries[: len(entries) // 2], entries[len(entries) // 2 :]
    first, second = halves[::-1] if to_score else halves
    for half in (first, second):
        random.Random(seed).shuffle(half)
    chosen = [*first, *second][:images]
    if len(chosen) < images:
        log.warning("COCO val2017 has only %d images that show something", len(chosen))
    if len(chosen) > len(first):
        log.warning(
            "with more than %d images, calibration and benchmark share some; scores on those are too good", len(first)
        )
    sizes = {}
    remote = []
    for entry in chosen:
        name, url = entry["file_name"], _URL.fullmatch(str(entry.get("coco_url")))
        if not _NAME.fullmatch(name) or not url:
            raise DatasetError(f"{path}: the image {name!r} has no usable name or coco_url")
        remote.append(RemoteFile(name, server + url["path"]))
        sizes[name] = size_of(entry, str(path))[::-1]

    def check(path: Path, file: RemoteFile) -> None:
        try:
            with PillowImage.open(path) as image:
                image.load()
                size = image.size
        except Exception as error:  # decoders raise anything
            raise CheckpointError(f"{file.url} is not an image: {error}; it was deleted") from error
        if size != sizes[file.file_name]:
            wanted = " x ".join(map(str, sizes[file.file_name]))
            raise CheckpointError(f"{file.url} has {size[0]} x {size[1]} pixels instead of {wanted}; it was deleted")

    place = folder / "val2017"
    download_files(remote, place, what="images", check=check)
    ids = {entry["id"] for entry in chosen}
    annotations = [each for each in truth["annotations"] if each["image_id"] in ids]
    return {**truth, "images": chosen, "annotations": annotations}, place


def _annotations(path: Path, server: str) -> Path:
    """Return the file of annotations. If it is missing, it is unpacked from the archive, which is downloaded and then
    deleted. If two processes want it, one waits for the other."""
    if is_file(path, CheckpointError):
        return path
    try:
        make_folder(path.parent, flag="--coco-folder")
        with locked(path.with_name(f".{path.name}.lock")):
            if not is_file(path, CheckpointError):
                _unpack(path, server)
    except (OSError, OutputError) as error:
        raise CheckpointError(f"cannot write {path}: {error}") from error
    return path


def _unpack(path: Path, server: str) -> None:
    archive = path.with_name(Path(ARCHIVE).name)

    def check(part: Path, file: RemoteFile) -> None:
        if not zipfile.is_zipfile(part):
            raise CheckpointError(f"{file.url} is not a zip archive; it was deleted")

    download_files([RemoteFile(archive.name, f"{server}/{ARCHIVE}")], path.parent, what="annotations", check=check)
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(MEMBER) as member:
            write_atomically(path, iter(lambda: member.read(CHUNK), b""))
    except (KeyError, zipfile.BadZipFile, EOFError, zlib.error, RuntimeError) as error:  # RuntimeError: encrypted
        archive.unlink(missing_ok=True)
        raise CheckpointError(f"{archive} has no readable {MEMBER}: {error}; it was deleted, try again") from error
    except OSError as error:
        raise CheckpointError(f"{archive} cannot be unpacked: {reason(error)}") from error
    archive.unlink(missing_ok=True)


def _server() -> str:
    """Return the server without a slash at its end. Raises `CheckpointError` if it is not the URL of one."""
    server = os.environ.get(SERVER_VARIABLE) or SERVER
    if not _SERVER.fullmatch(server):
        raise CheckpointError(f"{SERVER_VARIABLE} must be a URL such as {SERVER}, got {server!r}")
    return server.rstrip("/")
