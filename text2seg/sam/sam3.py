"""SAM 3 through `transformers`: from an image and a text directly to masks, for comparison with maps and point prompts.

Source: Carion et al., "SAM 3: Segment Anything with Concepts" (arXiv 2511.16719). Its memory for videos is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from text2seg.errors import CheckpointError, SettingsError
from text2seg.io.files import is_file
from text2seg.records import Image
from text2seg.runtime import FULL, Precision, PrecisionName, autocast, choose_precision
from text2seg.sam.base import StretchedFrame

logger = logging.getLogger(__name__)

WEIGHTS, CONFIG = "model.safetensors", "config.json"
MIDDLE = 127.5  # both mean and standard deviation, so that pixels from 0 to 255 become -1 to 1
MASK_THRESHOLD = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Output of SAM 3 for one text in one image, in the square frame that the image is stretched to.

    Attributes:
        logits: float32 [K, h, w], a mask for each of SAM 3's K object queries.
        scores: float32 [K] in [0, 1], the score of each mask, already multiplied by `presence`.
        presence: in [0, 1], the score that the text is in the image at all.
        everywhere: float32 [h, w], the logit that a cell belongs to the text, without a division into objects.
    """

    logits: NDArray[np.float32]
    scores: NDArray[np.float32]
    presence: float
    everywhere: NDArray[np.float32]


class Sam3:
    """SAM 3 on one device: a `transformers` Sam3Model and its tokenizer. It does not change after it is built."""

    compiled = False

    def __init__(self, module: Any, tokenizer: Any, device: torch.device, precision: Precision = FULL) -> None:
        self.module = module.to(device).eval().requires_grad_(False)
        self.device, self.precision = device, precision
        self._tokenizer = tokenizer
        self._length = module.config.text_config.max_position_embeddings
        side = module.config.image_size
        self._frame = StretchedFrame(side if isinstance(side, int) else side[0])

    @classmethod
    def open(cls, folder: Path, *, device: torch.device, precision: PrecisionName = "auto") -> Sam3:
        """Load the model from a folder that `transformers` wrote: config.json, model.safetensors and files of the
        tokenizer. Nothing is downloaded, and no code in the folder is run.

        Raises:
            CheckpointError: a file is missing, damaged or not that of a SAM 3.
            SettingsError: `transformers` is missing, or the device cannot run in that precision.
        """
        for name in (CONFIG, WEIGHTS):
            if not is_file(folder / name, CheckpointError):
                raise CheckpointError(
                    f"{folder} is no folder of SAM 3: it has no {name}. Ask for access to facebook/sam3 on the Hugging "
                    "Face hub, download it there and give the folder"
                )
        try:
            from transformers import AutoTokenizer, Sam3Model
        except ImportError as error:
            raise SettingsError('SAM 3 needs transformers: pip install "text2seg[sam2]"') from error
        chosen = choose_precision(device, precision)
        try:
            loaded: Any = Sam3Model.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # errors of transformers about unfit files have no common type
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{folder} does not hold a SAM 3: {reason}") from error
        module, report = loaded
        for fault in ("missing_keys", "mismatched_keys"):
            if report[fault]:
                first = sorted(map(str, report[fault]))[0]
                raise CheckpointError(f"{folder} does not hold a SAM 3: {len(report[fault])} {fault}, as {first}")
        logger.info("SAM 3 on %s in %s: %s", device, chosen.name, chosen.reason)
        return cls(module, tokenizer, device, chosen)

    @torch.no_grad()
    def find(self, image: Image, texts: Sequence[str]) -> list[Found]:
        """Return the output for each text. The image is encoded once.

        Raises:
            CheckpointError: the output is not finite: damaged weights, or an unfit precision.
        """
        middle = torch.tensor(MIDDLE, dtype=torch.float32, device=self.device)
        pixels, _ = self._frame.framed([image], middle, middle)
        with autocast(self.device, self.precision):
            features = self.module.get_vision_features(pixels)
            outputs = [self.module(vision_embeds=features, **self._tokens(text)) for text in texts]
        return [self._found(output) for output in outputs]

    def _tokens(self, text: str) -> dict[str, Tensor]:
        if len(self._tokenizer(text)["input_ids"]) > self._length:
            logger.warning("SAM 3 reads %d tokens; the end of this query is cut off: %s", self._length, text)
        tokens = self._tokenizer(
            text, padding="max_length", max_length=self._length, truncation=True, return_tensors="pt"
        )
        return {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}

    def _found(self, output: Any) -> Found:
        presence = output.presence_logits.float().sigmoid().flatten()[0]
        scores = output.pred_logits[0].float().sigmoid() * presence
        logits, everywhere = output.pred_masks[0].float(), output.semantic_seg[0, 0].float()
        if not bool(logits.isfinite().all() and scores.isfinite().all() and everywhere.isfinite().all()):
            raise CheckpointError(f"SAM 3's answer is not finite in {self.precision.name}; try precision fp32")
        return Found(logits.cpu().numpy(), scores.cpu().numpy(), float(presence), everywhere.cpu().numpy())

    @torch.no_grad()
    def mask(self, logits: NDArray[np.float32], image_hw: tuple[int, int]) -> NDArray[np.bool_]:
        """Return low-resolution logits [h, w] as a mask bool [H, W] of the image."""
        probabilities = torch.tensor(logits, dtype=torch.float32, device=self.device)[None, None].sigmoid()
        full = F.interpolate(probabilities, image_hw, mode="bilinear", align_corners=False)[0, 0]
        mask: NDArray[np.bool_] = (full > MASK_THRESHOLD).cpu().numpy()
        return mask
