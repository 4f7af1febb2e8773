"""Weights of CLIPs and SAMs out of files: the state dict is found, and held against the architecture before any
number is read.

A checkpoint may be a pickle, and a pickle may run anything. So `weights.archive` reads the files; it knows the few
types of a state dict and runs nothing."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from text2seg.errors import CheckpointError, Text2SegError
from text2seg.weights.archive import UNWANTED, opened
from text2seg.weights.pickles import REBUILD, Inert, StoredTensor

MOST = 16_384
"""The largest width, and the largest of any size but these."""
MOST_OF = {
    **dict.fromkeys(("vision_layers", "text_layers", "depth", "depths", "decoder_depth", "iou_depth"), 256),
    **dict.fromkeys(("candidates", "expansion", "patch"), 256),
    **dict.fromkeys(("window", "windows"), 64),
    **dict.fromkeys(("image_size", "context_length"), 4096),
    "vocabulary": 1 << 21,
}
LEAST_OF = {"window": 0, "global_blocks": 0, "patch": 4}
"""The smallest of those sizes that need not be 1. A patch is 14 to 32 pixels wide in every published CLIP and SAM."""
MOST_CELLS = 16_384
"""Patches of an input, each of which attends to all others: 128 by 128. Published SAMs have 64 by 64, and time and
memory grow with the square of it."""
PATCH_KEYS = re.compile(r"patch_(size|stride)")
SIZE_KEYS = re.compile(r"(image|img)_size")
FETCHES = ("timm_model_pretrained", "hf_model_pretrained", "attn_implementation", "_attn_implementation", "auto_map")
"""Entries of a configuration that can make other packages fetch weights or code."""


def count_numbered(names: Container[str], name: str) -> int:
    """How many numbered tensors there are under a name with a {} for the number: 0, 1, … without a gap.

    >>> count_numbered({"block.0.weight", "block.1.weight", "block.3.weight"}, "block.{}.weight")
    2

    Raises:
        KeyError: not even number 0 is there; its name is the argument.
    """
    count = 0
    while name.format(count) in names:
        count += 1
    if not count:
        raise KeyError(name.format(0))
    return count


def check_sizes(shape: object, network: str, told_by: Mapping[str, str]) -> None:
    """Hold the sizes of an architecture, a dataclass of numbers, against what is ever built, before it is built.

    Args:
        network: what it should be.
        told_by: the tensor whose shape tells a size; it is named in the message.

    Raises:
        CheckpointError: a size is too small or absurdly large, or the input has too many patches.
    """
    for field in dataclasses.fields(shape):  # type: ignore[arg-type]
        value, most = getattr(shape, field.name), MOST_OF.get(field.name, MOST)
        if dataclasses.is_dataclass(value):
            check_sizes(value, network, told_by)
            continue
        for size in value if isinstance(value, tuple) else (value,):
            least = LEAST_OF.get(field.name, 1)
            if size is not None and not least <= size <= most:
                tensor = f" (by {told_by[field.name]!r})" if field.name in told_by else ""
                name = field.name.replace("_", " ")
                told = f"its {name} is {size:,}{tensor}, not {least} to {most:,}"
                raise CheckpointError(f"not a {network} checkpoint: {told}")
    if patch := getattr(shape, "patch", None):
        check_cells((getattr(shape, "image_size") // patch,) * 2, f"not a {network} checkpoint: its input")  # noqa: B009


def check_cells(grid_hw: tuple[int, int], what: str, error: type[Text2SegError] = CheckpointError) -> None:
    """Raise `error` where an input, called `what`, has more patches than can attend to each other in bounded time."""
    rows, columns = grid_hw
    if rows * columns > MOST_CELLS:
        raise error(f"{what} has {rows:,} x {columns:,} patches, more than the {MOST_CELLS:,} that there may be")


def checked_config(config: Any, source: str) -> Any:
    """A copy of a configuration from a file, without what would fetch code or weights from elsewhere.

    Raises:
        CheckpointError: a number in it is absurdly large, or a patch too small, so that a network of it would never be
            built or never be done.
    """
    if isinstance(config, Mapping):
        kept = {key: value for key, value in config.items() if key not in FETCHES}
        for key, value in kept.items():
            sizes = value if isinstance(value, list) else [value]
            most = _most(str(key))
            least = LEAST_OF["patch"] if PATCH_KEYS.fullmatch(str(key)) else -most
            if any(isinstance(size, int) and abs(size) > most for size in sizes):
                raise CheckpointError(
                    f"{source}: {key!r:.40} is {value!s:.40}, more than the {most:,} that there may be"
                )
            if any(isinstance(size, int) and size < least for size in sizes):
                raise CheckpointError(f"{source}: {key!r:.40} is {value!s:.40}, less than the {least} that are needed")
        return {key: checked_config(value, source) for key, value in kept.items()}
    return [checked_config(each, source) for each in config] if isinstance(config, list) else config


def _most(key: str) -> int:
    """The largest number that an entry of a configuration may have."""
    if re.search(r"layers|depth|blocks_per|stages", key):
        return MOST_OF["depth"]
    if SIZE_KEYS.fullmatch(key):
        return MOST_OF["image_size"]
    return MOST_OF["window"] if key.startswith("window_size") else MOST_OF["vocabulary"]


logger = logging.getLogger(__name__)

CLIP_TENSORS = {
    "visual.conv1.weight": 4,
    "token_embedding.weight": 2,
    "positional_embedding": 2,
    "transformer.resblocks.0.attn.in_proj_weight": 2,
    "ln_final.weight": 1,
    "text_projection": 2,
    "logit_scale": 0,
}
"""Tensors that every CLIP in OpenAI's format has, with their number of axes."""

CLIP_VISUAL_TENSORS = {"visual.proj": 2, "visual.attnpool.positional_embedding": 2}
"""Of these it has one: the first if its image encoder is a transformer, the second if it is a ResNet."""

SAM_TENSORS = {
    "image_encoder.patch_embed.proj.weight": 4,
    "image_encoder.pos_embed": 4,
    "image_encoder.blocks.0.norm1.weight": 1,
    "image_encoder.blocks.0.attn.rel_pos_h": 2,
    "image_encoder.neck.0.weight": 4,
    "prompt_encoder.mask_downscaling.3.weight": 4,
    "mask_decoder.transformer.layers.0.norm1.weight": 1,
    "mask_decoder.transformer.layers.0.mlp.lin1.weight": 2,
    "mask_decoder.mask_tokens.weight": 2,
    "mask_decoder.iou_prediction_head.layers.0.weight": 2,
}
"""Tensors that every SAM in the official format has, with their number of axes."""

SAM_FAMILIES = {
    "image_encoder.patch_embed.seq.0.c.weight": "a MobileSAM in the official format",
    "image_encoder.trunk.patch_embed.proj.weight": "a SAM 2 in Meta's format",
    "vision_encoder.backbone.patch_embed.projection.weight": "a SAM 2 of transformers",
}
"""A tensor of four axes by which other SAMs are known, each with what it is; what else they need shows when they are
built."""

ARCHIVE_EXTRAS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives keep among the tensors; the shapes say the same."""


OPENCLIP_TENSORS = (
    "visual.conv1.weight",
    "visual.class_embedding",
    "visual.proj",
    "visual.trunk.patch_embed.proj.weight",
    "visual.trunk.pos_embed",
    "visual.attnpool.positional_embedding",
)
"""Some of which every CLIP of open_clip has."""

FOREIGN = {
    "vision_model.embeddings.": "a CLIP of transformers",
    "vision_model.encoder.": "a CLIP of transformers",
    "text_model.": "a CLIP of transformers",
    "detector.": "a SAM 3",
}
"""How names begin, behind a prefix perhaps, in formats that are not read here, each with what it is."""

WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
    "ema",
    "model_ema",
    "ema_state_dict",
    "params_ema",
)
"""Where training code puts the weights, the best first: what was trained comes before its moving average."""

WRAPPED_MODULES = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What torch puts into the names of tensors where it wraps a module, be it all of a network or a part of it."""

LEAST_HITS = 3
"""Known tensors behind one prefix by which a network is told from one of another format with a few of the same names.
Of a whole one many more are known."""

DEEPEST_WRAPPER = 6
MOST_WRAPPERS = 10_000  # dicts that are looked into; an optimiser's state has one for each parameter

Fits = Callable[[Mapping[str, Any]], object]
"""Raises `CheckpointError` where tensors, of which only names, shapes and dtypes are known, do not make a network."""


def load_clip_weights(path: str | Path, fits: Fits | None = None) -> dict[str, Tensor]:
    """The weights of a CLIP in OpenAI's format.

    Args:
        path: a state dict written by `torch.save`, an OpenAI TorchScript archive, or safetensors. The state dict may
            lie in other dicts, and its names may have a common prefix; what is around it is left out, and logged.
        fits: holds the shapes against the architecture before any number is read.

    Returns:
        Tensors by OpenAI's names, on the CPU, in the dtype they are stored in.

    Raises:
        CheckpointError: the file is missing, damaged, not a CLIP, holds numbers that are not finite, or wants to run
            code. The message names the file and the tensor at fault.
    """
    return _load(Path(path), _check_clip, (*CLIP_TENSORS, *CLIP_VISUAL_TENSORS), fits)


def load_sam_weights(path: str | Path, fits: Fits | None = None) -> dict[str, Tensor]:
    """The weights of a SAM or MobileSAM in the official format, or of a SAM 2 in Meta's or that of `transformers`.

    Args:
        path, fits: as for `load_clip_weights`.

    Returns:
        Tensors by the official names, on the CPU, in the dtype they are stored in.

    Raises:
        CheckpointError: the file is missing, damaged, not a SAM, holds numbers that are not finite, or wants to run
            code. The message names the file and the tensor at fault.
    """
    return _load(Path(path), _check_sam, (*SAM_TENSORS, *SAM_FAMILIES), fits)


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a network, whichever it is; files and errors as for `load_clip_weights`. What lies around the
    names of a CLIP of open_clip is left out."""
    return _load(Path(path), lambda weights, path: None, OPENCLIP_TENSORS, None)


Weights = Mapping[str, StoredTensor]


def _check_clip(weights: Weights, path: Path) -> None:
    if "image_encoder.patch_embed.proj.weight" in weights:
        raise CheckpointError(f"{path} is a SAM, but a CLIP is wanted")
    what = "a CLIP in OpenAI's format"
    if not weights.keys() & CLIP_VISUAL_TENSORS:
        missing = next((name for name in CLIP_TENSORS if name not in weights), "visual.proj")
        raise _not_it(path, what, missing, weights)
    _check(weights, CLIP_TENSORS | {n: axes for n, axes in CLIP_VISUAL_TENSORS.items() if n in weights}, path, what)


def _check_sam(weights: Weights, path: Path) -> None:
    if "visual.conv1.weight" in weights:
        raise CheckpointError(f"{path} is a CLIP, but a SAM is wanted")
    for name, what in SAM_FAMILIES.items():
        if name in weights:
            return _check(weights, {name: 4}, path, what)
    return _check(weights, SAM_TENSORS, path, "a SAM in the official format")


def _check(weights: Weights, needed: Mapping[str, int], path: Path, what: str) -> None:
    for name, axes in needed.items():
        if name not in weights:
            raise _not_it(path, what, name, weights)
        if weights[name].ndim != axes:
            shape = list(weights[name].shape)
            raise CheckpointError(f"{path} is not {what}: {name!r} has shape {shape}, expected {axes} axes")


def _not_it(path: Path, what: str, missing: str, weights: Weights) -> CheckpointError:
    known = _foreign(weights)
    told = f"it looks like {known}" if known else f"its {len(weights)} tensors are {_some(weights)}"
    return CheckpointError(f"{path} is not {what}: it has no tensor {missing!r}; {told}")


def _foreign(names: Iterable[Any]) -> str | None:
    """The format that is not read here and to which tensors of these names belong, behind whatever prefix."""
    dotted = [f".{name}" for name in names]
    return next((of for part, of in FOREIGN.items() if any(f".{part}" in name for name in dotted)), None)


def _some(names: Mapping[str, object]) -> str:
    """The first few names, for people."""
    shown = [f"{name!r:.80}" for name in list(names)[:3]]
    return ", ".join(shown) + (", …" if len(names) > len(shown) else "")


@torch.inference_mode(False)  # tensors made in it could not be used outside of it
def _load(
    path: Path, check: Callable[[Weights, Path], None], known: tuple[str, ...], fits: Fits | None
) -> dict[str, Tensor]:
    logger.info("loading %s", path)
    with opened(path) as content:
        stored = _state_dict(content, path, known)
        check(stored, path)
        if check is _check_clip:
            _warn_of_openclip(content, path)
        if fits:
            try:
                fits(stored)
            except CheckpointError as error:
                raise CheckpointError(f"{path}: {error}") from error
        _check_memory(stored, path)
        weights = {}
        for name, tensor in stored.items():
            weights[name] = tensor.read()
            if _is_finite(weights[name]):
                continue
            if weights[name].isfinite().all():
                raise CheckpointError(f"{path}: {name!r:.80} holds numbers that are too large for float32")
            raise CheckpointError(
                f"{path} is damaged: {name!r:.80} holds numbers that are not finite (NaN or infinity)"
            )
    logger.info("loaded %d tensors from %s", len(weights), path)
    return weights


def _warn_of_openclip(content: Any, path: Path) -> None:
    """Warn where open_clip's training wrote a CLIP that is read as one of OpenAI's: no tensor tells whether its blocks
    have QuickGELU, as OpenAI's have, or GELU, as most of open_clip's."""
    if not (isinstance(content, Mapping) and {"epoch", "name", "state_dict"} <= content.keys()):
        return
    run = content["name"]
    if not isinstance(run, str):
        return
    told = re.search(r"model_([\w-]+?)-lr_", run[:300])  # as the training names a run by default
    architecture = told[1] if told else "ARCH"
    if "quickgelu" not in architecture:
        logger.warning(
            "%s was written by open_clip's training, and is read as one of OpenAI's CLIPs, which have QuickGELU; if it "
            "was trained with GELU, its maps are wrong: use openclip:%s=%s instead",
            path,
            architecture,
            path,
        )


def _is_finite(tensor: Tensor) -> bool:
    """In float32, in which networks are built: some numbers of float64 are too large for it. Smallest and largest are
    found in one pass without a copy, and NaN is both."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.dtype.itemsize < 2:  # of float8 torch finds no smallest
        tensor = tensor.to(torch.float32)
    return all(abs(float(end)) <= torch.finfo(torch.float32).max for end in tensor.aminmax())


def _check_memory(weights: Weights, path: Path) -> None:
    """Raise where tensors need more memory than there is. Many tensors may be views of the same bytes of a file."""
    needed = sum(max(tensor.nbytes, 4 * tensor.nbytes // tensor.dtype.itemsize) for tensor in weights.values())
    try:
        there_is = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # of Windows, which does not tell it so
        return
    if needed > there_is:
        raise CheckpointError(
            f"{path} needs {needed / 1e9:.1f} GB for its weights, and this machine has {there_is / 1e9:.1f} GB"
        )


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Known tensors in one of a file's dicts, behind one prefix."""

    place: tuple[str, ...]
    prefix: str
    hits: int

    @property
    def rank(self) -> tuple[int, ...]:
        return tuple(WRAPPERS.index(key) if key in WRAPPERS else len(WRAPPERS) for key in self.place)

    def __str__(self) -> str:
        return "".join(f"[{key!r:.40}]" for key in self.place) + (f"{self.prefix!r:.60}" if self.prefix else "") or "''"


def _state_dict(content: Any, path: Path, known: tuple[str, ...]) -> dict[str, StoredTensor]:
    """The state dict in what a file holds: unwrapped, its names without a common prefix, tensors only."""
    if not isinstance(content, dict):
        raise _no_state_dict(content, path)
    holders = dict(_dicts(content, path))
    if not holders:
        raise _no_state_dict(content, path)
    every = (*known, *CLIP_TENSORS, *SAM_TENSORS)
    for names in (known, every):  # of the other kind too, which the caller will name
        candidates = [found for place, holder in holders.items() for found in _candidates(place, holder, names)]
        if candidates:
            break
    is_foreign = any(_foreign(holders[found.place]) and found.hits < LEAST_HITS for found in candidates)
    if candidates and not is_foreign:
        most = max(found.hits for found in candidates)
        best = sorted((c for c in candidates if c.hits == most), key=lambda c: (c.rank, len(c.prefix)))
        chosen = best[0]
        twins = [c for c in best[1:] if c.rank == chosen.rank]
        if twins:
            others = " and ".join(str(c) for c in (chosen, *twins[:2]))
            raise CheckpointError(f"{path} holds weights more than once, under {others}; save one of them alone")
    else:
        chosen = _Candidate(max(holders, key=lambda place: len(holders[place])), "", 0)
    holder = holders[chosen.place]
    tensors = {n: t for n, t in holder.items() if not chosen.prefix or str(n).startswith(chosen.prefix)}
    if chosen.place or chosen.prefix:
        left = [name for name in holder if name not in tensors]
        logger.info(
            "%s: the weights are taken from %s%s%s",
            path,
            "".join(f"[{key!r:.40}]" for key in chosen.place) or "all tensors",
            f" without {chosen.prefix!r:.60} before their names" if chosen.prefix else "",
            f"; {len(left)} other tensors, such as {left[0]!r:.80}, are left out" if left else "",
        )
    for name, tensor in tensors.items():
        if fault := _fault(name, tensor):
            raise CheckpointError(f"{path} is not a checkpoint of weights: {fault}")
    named = {name.removeprefix(chosen.prefix): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in named.items() if name not in ARCHIVE_EXTRAS}


def _fault(name: Any, tensor: StoredTensor | Inert) -> str | None:
    """Why a tensor by this name cannot be one of a state dict, or nothing."""
    if not isinstance(name, str):
        return f"a tensor has the name {name!r:.80}, which is no text"
    if isinstance(tensor, Inert):
        told = (
            "a quantised one; save its .dequantize()" if "qtensor" in tensor.kind.name else "a sparse one or the like"
        )
        return f"{name!r:.80} is not a plain tensor but {told}"
    if tensor.dtype.is_complex:
        return f"{name!r:.80} is not a plain tensor but one of complex numbers"
    if not tensor.is_plain:
        return f"{name!r:.80} is not a plain tensor but an expanded one; save its .contiguous()"
    return None


def _dicts(content: dict[Any, Any], path: Path) -> Iterator[tuple[tuple[str, ...], dict[Any, Any]]]:
    """Every dict with tensors in it, by the keys that lead to it; of each its tensors alone."""
    waiting: deque[tuple[tuple[str, ...], dict[Any, Any]]] = deque([((), content)])
    seen = {id(content)}
    while waiting:
        place, found = waiting.popleft()
        names = [name for name, value in found.items() if _is_tensor(value)]
        tensors = {_unwrapped(name): found[name] for name in names}
        if len(tensors) < len(names):
            twice = next(name for name in names if _unwrapped(name) != name and _unwrapped(name) in found)
            raise CheckpointError(f"{path} holds weights twice, as {_unwrapped(twice)!r:.80} and {twice!r:.80}")
        if tensors:
            yield place, tensors
        for name, value in found.items():
            is_new = isinstance(value, dict) and id(value) not in seen
            if is_new and len(place) < DEEPEST_WRAPPER and len(seen) < MOST_WRAPPERS:
                seen.add(id(value))
                waiting.append(((*place, str(name)), value))


def _unwrapped(name: Any) -> Any:
    """The name of a tensor without what torch puts into it where a part is wrapped. Where the whole is, it begins so,
    and is left: what the wrapper itself counts is told from it by that."""
    if not isinstance(name, str) or WRAPPED_MODULES.isdisjoint(parts := name.split(".")):
        return name
    first = next((place for place, part in enumerate(parts) if part not in WRAPPED_MODULES), 0)
    return ".".join(parts[:first] + [part for part in parts[first:] if part not in WRAPPED_MODULES])


def _is_tensor(value: Any) -> bool:
    """Whether it is one, be it of a kind that is not read."""
    return isinstance(value, StoredTensor) or (isinstance(value, Inert) and value.kind.full.startswith(REBUILD))


def _candidates(place: tuple[str, ...], tensors: Mapping[Any, Any], known: tuple[str, ...]) -> list[_Candidate]:
    hits: dict[str, int] = {}
    for name in tensors:
        for end in known:
            if "." in end and isinstance(name, str) and name.endswith(end) and name[: -len(end)][-1:] in ("", "."):
                prefix = name[: -len(end)]
                hits[prefix] = hits.get(prefix, 0) + 1
    return [_Candidate(place, prefix, count) for prefix, count in hits.items()]


def _no_state_dict(content: Any, path: Path) -> CheckpointError:
    """Says what a file holds in place of weights."""
    values = [content, *(content.values() if isinstance(content, dict) else ())]
    module = next((value for value in values if isinstance(value, Inert) and "_parameters" in value.attributes), None)
    if module:
        return CheckpointError(
            f"{path} was refused: reading it could run code (it holds a whole module, {module.kind.full:.80}), and "
            f"{UNWANTED}: torch.save(model.state_dict(), …)"
        )
    if isinstance(content, dict):
        keys = f", only {_some(content)}" if content else ""
        is_numpy = any(isinstance(value, Inert) and value.kind.module.startswith("numpy") for value in values)
        hint = "; numpy arrays are not read, save them as tensors" if is_numpy else ""
        return CheckpointError(f"{path} holds no tensors by name{keys}{hint}")
    kind = content.kind.full if isinstance(content, Inert) else type(content).__name__.removeprefix("Stored")
    return CheckpointError(f"{path} holds a {kind:.80}, not a state dict")
