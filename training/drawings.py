"""Rasterise the vendors' SVG drawings of all things into one bank of RGBA sprites.

The drawings come from the npm packages `@iconify-json/<vendor>`. Each package has its SVG bodies in one `icons.json`.
docs/demo_model.md lists the licences.
"""

from __future__ import annotations

import io
import json
import logging
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

log = logging.getLogger(__name__)

TRAINING_VENDORS = (
    "noto",
    "noto-v1",
    "openmoji",
    "fluent-emoji",
    "fluent-emoji-flat",
    "emojione",
    "emojione-v1",
    "fxemoji",
)
FURTHER_STYLES = ("streamline-emojis",)
"""Used for training but in no split: these vendors drew only some of the things, and with fine detail."""
HELD_OUT_VENDOR = "twemoji"
VENDORS = (*TRAINING_VENDORS, *FURTHER_STYLES, HELD_OUT_VENDOR)

CARD = Path(__file__).parents[1] / "text2seg" / "cards" / "demo.json"
SPRITE_SIZE = 192  # pixels

# Names of the vendors' icons, unless they are the thing's name with hyphens.
ICON_NAMES = {
    "sheep": ("ewe", "sheep"),
    "chick": ("baby-chick", "babychick"),
    "rabbit": ("rabbit-face", "rabbit"),
    "whale": ("spouting-whale", "whale"),
    "bee": ("honeybee", "bee"),
    "ladybug": ("lady-beetle", "ladybeetle", "ladybug"),
    "bear": ("bear", "bear-face"),
    "koala": ("koala", "koala-face"),
    "panda": ("panda", "panda-face"),
    "frog": ("frog", "frog-face"),
    "pizza": ("pizza", "slice-of-pizza"),
    "doughnut": ("doughnut", "donut"),
    "ice cream": ("soft-ice-cream", "soft-icecream"),
    "apple": ("red-apple",),
    "eggplant": ("eggplant", "aubergine"),
    "corn": ("ear-of-corn", "ear-of-maize"),
    "beer": ("beer-mug",),
    "coffee": ("hot-beverage",),
    "car": ("automobile",),
    "house": ("house", "house-building"),
    "umbrella": ("umbrella-with-rain-drops", "umbrella"),
    "gift": ("wrapped-gift", "wrapped-present"),
    "padlock": ("locked", "lock"),
    "book": ("closed-book",),
    "light bulb": ("light-bulb", "electric-light-bulb"),
    "hourglass": ("hourglass-done", "hourglass"),
    "soccer ball": ("soccer-ball",),
    "basketball": ("basketball", "basketball-and-hoop"),
    "pumpkin": ("jack-o-lantern",),
    "maple leaf": ("maple-leaf",),
    "four leaf clover": ("four-leaf-clover",),
    "snowman": ("snowman-without-snow", "snowman"),
    "sun": ("sun", "black-sun-with-rays", "sunny"),
    "high heel": ("high-heeled-shoe",),
    "sneaker": ("running-shoe", "athletic-shoe"),
    "shirt": ("t-shirt",),
    "star": ("star", "white-medium-star"),
    "traffic light": ("vertical-traffic-light",),
    "dice": ("game-die",),
    "computer mouse": ("computer-mouse", "three-button-mouse"),
}


@dataclass(frozen=True, slots=True)
class Sprite:
    """One drawing: `rgba` uint8[h, w, 4], not premultiplied, cropped to its visible part."""

    thing: int
    vendor: str
    rgba: np.ndarray


def load_things() -> dict[str, list[str]]:
    """Return the things of the demo world with their wordings, in the order of the category ids."""
    return json.loads(CARD.read_text(encoding="utf-8"))["vocabulary"]


def fetch_icons(folder: Path) -> None:
    """Install missing npm packages of the vendors in `folder`."""
    missing = [v for v in VENDORS if not _icons_file(folder, v).exists()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        packages = [f"@iconify-json/{vendor}" for vendor in missing]
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *packages], check=True)


def _icons_file(folder: Path, vendor: str) -> Path:
    return folder / "node_modules" / "@iconify-json" / vendor / "icons.json"


def _svg(icons: dict, name: str) -> str | None:
    """Return the SVG text of an icon or of the icon that it is an alias of. None if the vendor has not drawn it."""
    entry = icons["icons"].get(name)
    if entry is None:
        alias = icons.get("aliases", {}).get(name)
        entry = icons["icons"].get(alias["parent"]) if alias else None
    if entry is None:
        return None
    width, height = (entry.get(side, icons.get(side, 16)) for side in ("width", "height"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">{entry["body"]}</svg>'
    )


def _rasterise(svg: str) -> np.ndarray:
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SPRITE_SIZE, height=SPRITE_SIZE))
    rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
    rows, columns = np.nonzero(rgba[..., 3] > 16)
    return np.ascontiguousarray(rgba[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])


def load_sprites(folder: Path) -> list[Sprite]:
    """Return all drawings of all things. They are rasterised once and cached in `folder/sprites.npz`."""
    cache = folder / "sprites.npz"
    things = list(load_things())
    if cache.exists():
        with np.load(cache) as bank:
            is_current = "__vendors__" in bank and tuple(bank["__vendors__"]) == VENDORS
            if is_current and list(bank["__things__"]) == things:
                keys = [key.split("/") for key in bank.files if "/" in key]
                return [Sprite(things.index(t), v, bank[f"{t}/{v}"]) for t, v in keys]
    fetch_icons(folder)
    drawings = {}
    for vendor in VENDORS:
        icons = json.loads(_icons_file(folder, vendor).read_text(encoding="utf-8"))
        missing = []
        for thing in things:
            plain = thing.replace(" ", "-")
            names = ICON_NAMES.get(thing, (plain,))
            candidates = [n for name in names for n in (name, name.replace("-", ""), f"{name}-1")]
            svg = next((s for s in (_svg(icons, n) for n in candidates) if s), None)
            if svg is None:
                missing.append(thing)
            else:
                drawings[f"{thing}/{vendor}"] = _rasterise(svg)
        log.info("%s: %d drawings, not drawn: %s", vendor, len(things) - len(missing), ", ".join(missing) or "none")
    np.savez_compressed(cache, __things__=np.array(things), __vendors__=np.array(VENDORS), **drawings)
    return [Sprite(things.index(k.split("/")[0]), k.split("/")[1], rgba) for k, rgba in drawings.items()]
