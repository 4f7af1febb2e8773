"""Print the tables of open_clip's models in docs/models.md: supported models with their sizes, and other models with
the reason why they are not supported.

    python scripts/table_of_openclip.py

Takes minutes, because it builds every supported model, without weights, to count the parameters.
"""

from __future__ import annotations

import re
from typing import Any

import torch

from text2seg.clip.openclip import import_open_clip, why_not

FAMILIES = {
    "ResNet": r"RN\d",
    "CLIPA": r"ViT-.*-CLIPA",
    "MetaCLIP 2": r"ViT-.*-worldwide",
    "SigLIP 2": r"ViT-.*-SigLIP2",
    "SigLIP": r"ViT-.*-SigLIP",
    "MobileCLIP 2": r"MobileCLIP2-L",
    "ViT": r"ViT-",
    "timm's ViT": r"vit_",
}
"""Patterns of the names of architectures. The first that matches gives the family."""

LICENCES = {
    "CLIPA": "Apache 2.0",
    "MetaCLIP 2": "CC BY-NC 4.0",
    "SigLIP 2": "Apache 2.0",
    "SigLIP": "Apache 2.0",
    "MobileCLIP 2": "Apple, research only",
}
"""Licences of the weights, as stated by their publishers. In other families, licences differ from tag to tag."""


def family_of(architecture: str) -> str:
    return next(family for family, pattern in FAMILIES.items() if re.match(pattern, architecture))


def shape_of(config: dict[str, Any]) -> str:
    """Return the shape of the image tower: patch or stride, width × blocks, and the size of its training images."""
    image = config["vision_cfg"]
    side = image.get("image_size", 224)
    if name := image.get("timm_model_name"):
        return f"timm's {name}; {side}"
    if isinstance(image["layers"], list):
        return f"ResNet {'-'.join(map(str, image['layers']))}; {side}"
    return f"/{image['patch_size']}, {image['width']} × {image['layers']}; {side}"


def parameters_of(config: dict[str, Any]) -> int:
    from open_clip.model import CLIP, CustomTextCLIP

    arguments = {name: value for name, value in config.items() if name != "custom_text"}
    with torch.device("meta"):
        model = (CustomTextCLIP if config.get("custom_text") else CLIP)(**arguments)
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    open_clip = import_open_clip()
    refused: dict[str, list[str]] = {}
    rows: dict[str, list[str]] = {family: [] for family in FAMILIES}
    for architecture in open_clip.list_models():
        config = open_clip.get_model_config(architecture)
        why = why_not(config)
        if why:
            refused.setdefault(re.sub(r" \(.*?\)", "", why), []).append(f"`{architecture}`")
            continue
        if architecture.endswith("-quickgelu"):
            continue  # the same model with another activation
        tags = len(open_clip.list_pretrained_tags_by_model(architecture))
        millions = parameters_of(config) / 1e6
        family = family_of(architecture)
        licence = LICENCES.get(family, "by tag") if tags else "—"
        rows[family].append(
            f"| `{architecture}` | {family} | {shape_of(config)} | {millions:.0f} M | {tags or 'none'} | {licence} |"
        )
    print("| fits | family | image tower; pixels trained on | parameters | published weights | licence |")
    print("|---|---|---|---|---|---|")
    print("\n".join(row for family in FAMILIES for row in rows[family]))
    print("\n| does not fit | why |\n|---|---|")
    for why, names in refused.items():
        print(f"| {', '.join(names)} | {why} |")


if __name__ == "__main__":
    main()
