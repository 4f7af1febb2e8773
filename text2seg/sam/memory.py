"""SAM 2's memory: follows things through the frames of a video, each from its mask in one frame.

The network is `transformers`' Sam2VideoModel with the weights of a loaded `Sam2`, which are not copied. Only what the
network can still read of earlier frames is kept.

Source: Ravi et al., "SAM 2: Segment Anything in Images and Videos" (arXiv 2408.00714).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from text2seg.errors import CheckpointError
from text2seg.records import Image
from text2seg.runtime import FULL, Defaults, autocast, before_call
from text2seg.sam.sam import check_fit
from text2seg.sam.sam2 import Sam2, import_transformers
from text2seg.weights.architecture import checked_config

_FIELDS = ("num_maskmem", "image_size", "rope_parameters")
_PREFIXES = ("memory_", "mask_downsampler_", "sigmoid_", "enable_", "multimask_", "max_")
"""Names, and starts of names, of the entries of a config.json that describe the memory."""


@dataclass(frozen=True, slots=True, eq=False)
class Followed:
    """One thing in one frame: `logits` float32[h, w], its mask at SAM's low resolution, `mask` bool[H, W] in the
    frame, and `score` in [0, 1], how sure SAM 2 is that the thing is visible. Below 0.5 the mask is empty."""

    logits: NDArray[np.float32]
    mask: NDArray[np.bool_]
    score: float


class VideoMemory:
    """The memory of one video, whose frames are given one by one in their order. Not safe for several threads."""

    def __init__(self, sam: Sam2) -> None:
        """Raises `CheckpointError` if the SAM 2 has no memory, or not the one that its architecture needs."""
        if sam.video_module is None:
            sam.video_module = video_module(sam)
        self._sam, self._module = sam, sam.video_module
        self._session = import_transformers().Sam2VideoInferenceSession(
            inference_device=sam.device,
            inference_state_device=sam.device,
            video_storage_device=sam.device,
            dtype=torch.float32,
        )
        self._side: int = self._module.prompt_encoder.input_image_size
        self._frames = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors that are kept of earlier frames."""
        kept = [self._session.mask_inputs_per_obj, self._session.output_dict_per_obj, self._session.processed_frames]
        return sum(tensor.nbytes for tensor in _tensors(kept))

    @torch.no_grad()
    def follow(self, image: Image, new: Mapping[int, NDArray[np.bool_]] | None = None) -> dict[int, Followed]:
        """Find all things in the next frame.

        Args:
            image: the frame.
            new: masks bool[H, W] of things that are followed from this frame on, by numbers of their own.

        Returns:
            Each thing by its number, in the order in which they were given.
        """
        frame, session = self._frames, self._session
        self._frames += 1
        for number, mask in (new or {}).items():
            session.add_mask_inputs(session.obj_id_to_idx(number), frame, self._prompt(mask))
            session.obj_with_new_inputs.append(number)
        if not session.obj_ids:
            return {}
        before_call(len(session.obj_ids))
        with Defaults(self._sam.device):
            pixels = self._encode(image, frame)
            with autocast(self._sam.device, FULL):
                output = self._module(session, frame=pixels, frame_idx=frame)
        logits = output.pred_masks.float().reshape(len(output.object_ids), *output.pred_masks.shape[-2:])
        if not bool(logits.isfinite().all()):
            raise CheckpointError(f"SAM 2's masks are not finite in {self._sam.precision.name}; try precision fp32")
        scores = output.object_score_logits.float().sigmoid().flatten().tolist()
        self._forget(frame)
        found = {}
        for number, low, score in zip(output.object_ids, logits, scores, strict=True):
            full = F.interpolate(low[None, None], image.hw, mode="bilinear", align_corners=False)[0, 0]
            found[number] = Followed(low.cpu().numpy(), (full > self._sam.mask_threshold).cpu().numpy(), score)
        return found

    def _encode(self, image: Image, frame: int) -> Tensor:
        """Encode a frame in the precision of the SAM, let the session keep the features, and return the pixels."""
        pixels = self._sam.framed([image])
        with autocast(self._sam.device, self._sam.precision):
            encoded = self._sam.module.vision_encoder(pixels)
        features = [level.float() for level in encoded.fpn_hidden_states]
        with autocast(self._sam.device, FULL):
            decoder = self._module.mask_decoder
            features[0], features[1] = decoder.conv_s0(features[0]), decoder.conv_s1(features[1])
        positions = [level.float() for level in encoded.fpn_position_encoding]
        self._session.cache.cache_vision_features(
            frame, {"vision_feats": _flat(features), "vision_pos_embeds": _flat(positions)}
        )
        return pixels

    def _prompt(self, mask: NDArray[np.bool_]) -> Tensor:
        """Return a mask as SAM 2 takes it, float32 [1, 1, side, side] of zeros and ones."""
        pixels = torch.from_numpy(mask.astype(np.float32))[None, None].to(self._sam.device)
        size = (self._side, self._side)
        if mask.shape != size:
            pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False, antialias=True)
        return (pixels >= 0.5).float()

    def _forget(self, frame: int) -> None:
        """Drop what no later frame reads: pixels, masks at full size, and the outputs of frames long ago."""
        session, config = self._session, self._module.config
        session.processed_frames.clear()
        first = frame + 1 - max(config.num_maskmem, config.max_object_pointers_in_encoder)
        for index, outputs in session.output_dict_per_obj.items():
            session.mask_inputs_per_obj[index].clear()
            for tracked in (outputs["non_cond_frame_outputs"], session.frames_tracked_per_obj[index]):
                for old in [number for number in tracked if number < first]:
                    del tracked[old]
            for kind in outputs.values():
                for output in kind.values():
                    output.pop("high_res_masks", None)


def video_module(sam: Sam2) -> Any:
    """Build the `Sam2VideoModel` of a SAM 2 from its weights and those of its memory. No tensor is copied.

    Raises:
        CheckpointError: the SAM 2 has no memory, or its tensors are missing, unknown or of another shape.
    """
    if not sam.memory_weights:
        raise CheckpointError("this SAM 2 has no tensors of a memory; take the whole checkpoint, or --tracker matching")
    library = import_transformers()
    own = {name: tensor.to(sam.device, torch.float32) for name, tensor in sam.memory_weights.items()}
    try:
        config = library.Sam2VideoConfig(**_config_parts(sam))
        with torch.device("meta"):
            module = library.Sam2VideoModel(config)
        with torch.device("cpu"):  # it has buffers that are computed and in no checkpoint
            module.memory_attention = type(module.memory_attention)(config)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"no SAM 2 has a memory like the one in config.json ({error})") from error
    tensors = {**sam.module.state_dict(), **own}
    expected = module.state_dict()
    check_fit(expected, tensors, "a SAM 2 with a memory")
    module.load_state_dict(tensors, assign=True)
    return module.to(sam.device).eval().requires_grad_(False)


def _config_parts(sam: Sam2) -> dict[str, Any]:
    """Return the arguments of `Sam2VideoConfig`: those of the image model, and those of the memory.

    Without a config.json they are the published ones. Of those, SAM 2 and 2.1 differ in two parts of the memory.
    """
    config = sam.module.config
    parts = {name: getattr(config, name).to_dict() for name in ("vision_config", "prompt_encoder_config")}
    parts["mask_decoder_config"] = config.mask_decoder_config.to_dict()
    named = checked_config(sam.config or {}, "the config.json beside the weights")
    memory = {name: each for name, each in named.items() if name in _FIELDS or name.startswith(_PREFIXES)}
    return {
        "image_size": config.prompt_encoder_config.image_size,
        "enable_temporal_pos_encoding_for_object_pointers": any(
            name.startswith("temporal_positional_encoding_projection_layer.") for name in sam.memory_weights
        ),
        "enable_occlusion_spatial_embedding": "occlusion_spatial_embedding_parameter" in sam.memory_weights,
        **memory,
        **parts,
    }


def _flat(levels: list[Tensor]) -> list[Tensor]:
    """Return features [1, C, h, w] as [h · w, 1, C]."""
    return [level.flatten(2).permute(2, 0, 1) for level in levels]


def _tensors(kept: Any) -> list[Tensor]:
    """Return all tensors in nested dicts and lists."""
    if isinstance(kept, Tensor):
        return [kept]
    inner = kept.values() if isinstance(kept, Mapping) else kept if isinstance(kept, list) else ()
    return [tensor for each in inner for tensor in _tensors(each)]
