"""Find the state dict in what a file of weights contains.

Training code nests state dicts in other dicts, saves whole modules, and puts prefixes before the names of tensors. The
names that a CLIP or SAM must have show where its tensors are.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from text2seg.errors import CheckpointError
from text2seg.weights.pickles import REBUILD, PickledObject
from text2seg.weights.stored_tensors import StoredTensor

CLIP_TENSORS = {
    "visual.conv1.weight": 4,
    "token_embedding.weight": 2,
    "positional_embedding": 2,
    "transformer.resblocks.0.attn.in_proj_weight": 2,
    "ln_final.weight": 1,
    "text_projection": 2,
    "logit_scale": 0,
}
"""Tensors that every CLIP in OpenAI's format has, and their number of axes."""

CLIP_VISUAL_TENSORS = {"visual.proj": 2, "visual.attnpool.positional_embedding": 2}
"""A CLIP has one of these tensors: a vision transformer the first, a ResNet the second."""

ARCHIVE_EXTRAS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives keep among the tensors. The shapes contain the same information."""

FOREIGN = {
    "vision_model.embeddings.": "a CLIP of transformers",
    "vision_model.encoder.": "a CLIP of transformers",
    "text_model.": "a CLIP of transformers",
    "detector.": "a SAM 3",
}
"""Starts of tensor names (after any prefix) in formats that are not read here."""

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
"""Keys under which training code stores weights, best first: trained weights come before their moving average."""

WRAPPED_MODULES = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts that torch adds to the names of tensors when it wraps a network or a part of it."""

FEW_HITS = 3
"""A network of a foreign format may share fewer names than this with a known one. A complete network shares more."""

KNOWN_MODULES = ("torch.nn.", "clip.model.", "open_clip.", "segment_anything.modeling.", "mobile_sam.modeling.")
"""Starts of the class names of modules that compute what their tensors say."""
MOST_MODULES = 100_000  # in one saved module
DEEPEST_MODULE = 64
DEEPEST_WRAPPER = 6
MOST_WRAPPERS = 10_000  # dicts that are searched; the state of an optimizer has one for each parameter

logger = logging.getLogger(__name__)
_warned_of: set[Path] = set()
"""Files with modules of unknown classes that this process has logged."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """Known tensors in one of the dicts in a file, after one prefix."""

    place: tuple[str, ...]
    prefix: str
    hits: int

    @property
    def rank(self) -> tuple[int, ...]:
        return tuple(WRAPPERS.index(key) if key in WRAPPERS else len(WRAPPERS) for key in self.place)

    def __str__(self) -> str:
        return "".join(f"[{key!r:.40}]" for key in self.place) + (f"{self.prefix!r:.60}" if self.prefix else "") or "''"


def find_state_dict(
    content: Any, path: Path, known: tuple[str, ...], also_known: tuple[str, ...]
) -> dict[str, StoredTensor]:
    """Return the state dict in the content of a file: tensors only, with the common prefix of their names removed.

    Args:
        content: what `weights.formats.open_weights` yields.
        path: the file, for messages.
        known: names of tensors that the network has.
        also_known: names to look for if none of these is found, so that the caller can say what the file is instead.

    Raises:
        CheckpointError: there are no named tensors, the weights are there more than once, or a tensor is of a kind that
            is not read.
    """
    if _is_module(content):
        content = _tensors_of_module(content, path)
    if not isinstance(content, dict):
        raise _no_state_dict(content, path)
    holders = dict(_dicts_of_tensors(content, path))
    if not holders:
        raise _no_state_dict(content, path)
    for names in (known, also_known):
        candidates = [found for place, holder in holders.items() for found in _candidates(place, holder, names)]
        if candidates:
            break
    is_foreign = any(foreign_format(holders[found.place]) and found.hits < FEW_HITS for found in candidates)
    if candidates and not is_foreign:
        chosen = _best(candidates, path)
    else:
        chosen = _Candidate(max(holders, key=lambda place: len(holders[place])), "", 0)
    tensors = _tensors_of(chosen, holders[chosen.place], path)
    for name, tensor in tensors.items():
        if fault := _fault(name, tensor):
            raise CheckpointError(f"{path} is not a checkpoint of weights: {fault}")
    named = {name.removeprefix(chosen.prefix): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in named.items() if name not in ARCHIVE_EXTRAS}


def foreign_format(names: Iterable[Any]) -> str | None:
    """Return the unsupported format that tensors of these names belong to, or None."""
    dotted = [f".{name}" for name in names]
    return next((what for part, what in FOREIGN.items() if any(f".{part}" in name for name in dotted)), None)


def first_names(names: Mapping[str, object]) -> str:
    """Return the first few names, for messages."""
    first = [f"{name!r:.80}" for name in list(names)[:3]]
    return ", ".join(first) + (", …" if len(names) > len(first) else "")


# ---- dicts and modules with tensors in them


def _dicts_of_tensors(content: dict[Any, Any], path: Path) -> Iterator[tuple[tuple[str, ...], dict[Any, Any]]]:
    """Yield each nested dict that has tensors: the keys that lead to it, and its tensors."""
    waiting: deque[tuple[tuple[str, ...], dict[Any, Any]]] = deque([((), content)])
    seen = {id(content)}
    while waiting:
        place, found = waiting.popleft()
        names = [name for name, value in found.items() if _is_tensor(value)]
        tensors = {_without_wrappers(name): found[name] for name in names}
        if len(tensors) < len(names):
            twice = next(name for name in names if _without_wrappers(name) != name and _without_wrappers(name) in found)
            raise CheckpointError(f"{path} holds weights twice, as {_without_wrappers(twice)!r:.80} and {twice!r:.80}")
        if tensors:
            yield place, tensors
        for name, value in found.items():
            if id(value) in seen or len(place) >= DEEPEST_WRAPPER or len(seen) >= MOST_WRAPPERS:
                continue
            if isinstance(value, dict) or _is_module(value):
                seen.add(id(value))
                inner = value if isinstance(value, dict) else _tensors_of_module(value, path)
                waiting.append(((*place, str(name)), inner))


def _is_tensor(value: Any) -> bool:
    """Return whether a value is a tensor, possibly of a kind that is not read."""
    return isinstance(value, StoredTensor) or (isinstance(value, PickledObject) and value.kind.full.startswith(REBUILD))


def _is_module(value: Any) -> bool:
    """Return whether an object was a `torch.nn.Module`."""
    return isinstance(value, PickledObject) and {"_parameters", "_buffers", "_modules"} <= value.attributes.keys()


def _without_wrappers(name: Any) -> Any:
    """Remove the parts that torch adds inside a tensor name for wrapped modules.

    Such parts at the start are kept. They become the prefix, which separates the network from the wrapper's tensors.
    """
    if not isinstance(name, str) or WRAPPED_MODULES.isdisjoint(parts := name.split(".")):
        return name
    first = next((place for place, part in enumerate(parts) if part not in WRAPPED_MODULES), 0)
    return ".".join(parts[:first] + [part for part in parts[first:] if part not in WRAPPED_MODULES])


def _tensors_of_module(module: PickledObject, path: Path) -> dict[str, Any]:
    """Return the tensors of a module that was saved whole, by the names of its state dict.

    The module is not built: only names and tensors are read. An unknown class may compute something other than a CLIP
    or SAM, so it is logged.

    Raises:
        CheckpointError: the modules are too many or nested too deep.
    """
    found: dict[str, Any] = {}
    unknown: list[str] = []
    waiting, visits = [("", module)], 0
    while waiting:
        prefix, each = waiting.pop()
        visits += 1
        if visits > MOST_MODULES or prefix.count(".") > DEEPEST_MODULE:
            raise CheckpointError(f"{path} is damaged: its modules are too many or nested too deep")
        if not each.kind.full.startswith(KNOWN_MODULES):
            unknown.append(each.kind.full)
        transient = each.attributes.get("_non_persistent_buffers_set")
        left_out = transient.attributes if isinstance(transient, PickledObject) else {}
        for kind in ("_parameters", "_buffers"):
            tensors = each.attributes[kind]
            if isinstance(tensors, dict):
                found |= {f"{prefix}{n}": t for n, t in tensors.items() if t is not None and n not in left_out}
        parts = each.attributes["_modules"]
        if isinstance(parts, dict):
            waiting += [(f"{prefix}{name}.", part) for name, part in parts.items() if _is_module(part)]
    logger.info("%s: the tensors are read from a whole module, %.80s; none of its code runs", path, module.kind.full)
    if unknown and path not in _warned_of:
        _warned_of.add(path)
        logger.warning(
            "%s holds a module of the class %.80s. Its tensors are used as those of a CLIP or SAM; anything else that "
            "the class computes is ignored",
            path,
            unknown[0],
        )
    return found


# ---- choice of one dict and prefix


def _candidates(place: tuple[str, ...], tensors: Mapping[Any, Any], known: tuple[str, ...]) -> list[_Candidate]:
    hits: dict[str, int] = {}
    for name in tensors:
        for end in known:
            if "." in end and isinstance(name, str) and name.endswith(end) and name[: -len(end)][-1:] in ("", "."):
                prefix = name[: -len(end)]
                hits[prefix] = hits.get(prefix, 0) + 1
    return [_Candidate(place, prefix, count) for prefix, count in hits.items()]


def _best(candidates: list[_Candidate], path: Path) -> _Candidate:
    """Return the candidate with the most known tensors, then under the best key. Raises if two are equally good."""
    most = max(found.hits for found in candidates)
    best = sorted((c for c in candidates if c.hits == most), key=lambda c: (c.rank, len(c.prefix)))
    twins = [c for c in best[1:] if c.rank == best[0].rank]
    if twins:
        places = " and ".join(str(c) for c in (best[0], *twins[:2]))
        raise CheckpointError(f"{path} holds weights more than once, under {places}; save one of them alone")
    return best[0]


def _tensors_of(chosen: _Candidate, holder: dict[Any, Any], path: Path) -> dict[Any, Any]:
    """Return the tensors of a candidate, and log where they were found."""
    tensors = {n: t for n, t in holder.items() if not chosen.prefix or str(n).startswith(chosen.prefix)}
    if chosen.place or chosen.prefix:
        ignored = [name for name in holder if name not in tensors]
        logger.info(
            "%s: the weights are taken from %s%s%s",
            path,
            "".join(f"[{key!r:.40}]" for key in chosen.place) or "all tensors",
            f" without the prefix {chosen.prefix!r:.60}" if chosen.prefix else "",
            f"; {len(ignored)} other tensors, such as {ignored[0]!r:.80}, are ignored" if ignored else "",
        )
    return tensors


def _fault(name: Any, tensor: StoredTensor | PickledObject) -> str | None:
    """Return why a tensor cannot be part of a state dict, or None."""
    if not isinstance(name, str):
        return f"a tensor has the name {name!r:.80}, which is not a string"
    if isinstance(tensor, PickledObject):
        is_quantized = "qtensor" in tensor.kind.name
        return f"{name!r:.80} is not a plain tensor but " + (
            "a quantized one; save its .dequantize()" if is_quantized else "a sparse one or the like"
        )
    if tensor.dtype.is_complex:
        return f"{name!r:.80} is not a plain tensor but one of complex numbers"
    if not tensor.is_plain:
        return f"{name!r:.80} is not a plain tensor but an expanded one; save its .contiguous()"
    return None


def _no_state_dict(content: Any, path: Path) -> CheckpointError:
    """Return an error that says what a file contains instead of a state dict."""
    values = [content, *(content.values() if isinstance(content, dict) else ())]
    if isinstance(content, dict):
        keys = f", only {first_names(content)}" if content else ""
        is_numpy = any(isinstance(value, PickledObject) and value.kind.module.startswith("numpy") for value in values)
        hint = "; numpy arrays are not read, save them as tensors" if is_numpy else ""
        return CheckpointError(f"{path} holds no tensors by name{keys}{hint}")
    kind = content.kind.full if isinstance(content, PickledObject) else type(content).__name__.removeprefix("Stored")
    return CheckpointError(f"{path} holds a {kind:.80}, not a state dict")
