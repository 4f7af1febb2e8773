"""The order of the stages: words and an image to maps, maps to points, points to masks.

The only file that knows this order. One image is a batch of one, and every way in comes through here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from text2seg._version import __version__
from text2seg.clip.model import Clip, ImageTokens, label_set, query_maps, texts_of
from text2seg.config import MapSettings, Settings
from text2seg.errors import QueryError
from text2seg.grids import minmax
from text2seg.io.images import ImageSource as Source
from text2seg.io.images import load_image
from text2seg.loading import load_pair
from text2seg.prompts import sam_prompts
from text2seg.queries import Query, Things, parse_queries
from text2seg.records import Box, Candidates, Image, PointPrompts, SamPrompt, Segment, Segmentation, SimilarityMaps
from text2seg.runtime import PrecisionName
from text2seg.sam.base import AnySam, SamEmbedding
from text2seg.sam.candidates import by_sam, cut, segment_of
from text2seg.sam.overlap import settle
from text2seg.tiling import KEPT_VIEWS, crop, place, segment_views

ImageSource = Source | Image
Queries = str | Iterable[str | Query]


class Text2Seg:
    """CLIP and SAM together: images and words to segments. Safe to share between threads."""

    def __init__(
        self,
        clip: Clip,
        sam: AnySam,
        *,
        settings: Settings | None = None,
        input_size: int | None = None,
        things: Things | None = None,
        provenance: dict[str, object] | None = None,
    ) -> None:
        """
        Args:
            settings: what calls use that bring no settings of their own.
            input_size: CLIP's input where the settings leave it open; default: what it was trained on.
            things: all that the models know, where that is little; other queries are refused.
            provenance: what to write beside results so that they can be made again.
        """
        self.clip, self.sam, self.things = clip, sam, things
        self.settings = settings or Settings()
        self.input_size = input_size
        self._provenance = provenance or {}

    @classmethod
    def load(
        cls,
        model: str = "demo",
        *,
        clip: str | None = None,
        sam: str | None = None,
        device: str = "auto",
        precision: PrecisionName = "auto",
        compile: bool = False,
        graphs: str | os.PathLike[str] | None = None,
        settings: Settings | None = None,
    ) -> Text2Seg:
        """Load a pair of models by name, downloading what is missing.

        Args:
            model: demo, base, large or huge.
            clip, sam: a name or a file in place of the pair's own.
            device, precision: auto, or by name: cpu, cuda, mps, …; bf16, fp16, fp32.
            compile: let torch compile SAM's encoder, which takes a while and is worth it for many images.
            graphs: a folder of `text2seg export onnx` of the same pair; ONNX Runtime runs them in place of torch.
            settings: what calls use that bring no settings of their own.

        Raises:
            CheckpointError: weights or graphs that are unknown, missing, damaged or of the wrong kind.
            SettingsError: a device, a precision, a compiler or a runtime that this machine does not have.
        """
        pair = load_pair(
            model, clip=clip, sam=sam, device=device, precision=precision, compile_sam=compile, graphs=graphs
        )
        return cls(
            pair.clip, pair.sam, settings=settings, input_size=pair.size, things=pair.things, provenance=pair.provenance
        )

    def provenance(self, settings: Settings | None = None) -> dict[str, object]:
        """What made a result: version, checkpoints with their hashes, precision, settings. Plain JSON values."""
        return {
            "text2seg": __version__,
            "runtime": "torch",
            "precision": self.sam.precision.name,
            "compiled": self.sam.compiled,
            **self._provenance,
            "settings": asdict(settings or self.settings),
        }

    def check(self, queries: Queries, settings: Settings | None = None) -> tuple[Query, ...]:
        """Read the queries, before any image is.

        Raises:
            QueryError: there is none, one is empty, these models know only some things and this is none of them, or
                the settings ask for a label set and there is but one label.
            SettingsError: the attention rule is for vision transformers and this CLIP is a ResNet.
        """
        maps = (settings or self.settings).maps
        self.clip.check(maps.architecture)
        parsed = parse_queries(queries)
        texts = texts_of(parsed)
        if self.things:
            for wording in dict.fromkeys(wording for wordings in texts for wording in wordings):
                self.things.check(wording)
        if maps.redundancy == "label-set":
            label_set(texts, maps.labels)
        return parsed

    def open(self, image: ImageSource, *, image_id: int = 1) -> Session:
        """A session on one image, as for `segment`, which keeps what was computed for it. `image_id` is its number in
        a COCO file; an `Image` keeps its own. Raises `ImageError` where it cannot be read."""
        return Session(self, image if isinstance(image, Image) else load_image(image, image_id=image_id))

    def segment(self, image: ImageSource, queries: Queries, settings: Settings | None = None) -> Segmentation:
        """Find what the queries name in one image.

        Args:
            image: a path, a PIL image, an RGB array uint8 [H, W, 3] or an `Image`.
            queries: one string or several, each as people type names (`queries.names_in`: with commas, in lines, …);
                `a+b` gives one segment for both together.
            settings: in place of the model's own.

        Returns:
            Segments in the order of the queries; a query without one was not found.

        Raises `ImageError` or `QueryError` where what was given cannot be read.
        """
        return self.open(image).segment(queries, settings)

    def segment_many(
        self, images: Sequence[ImageSource], queries: Queries, settings: Settings | None = None
    ) -> tuple[Segmentation, ...]:
        """`segment` for a batch: the models see all images at once. Their ids are 1, 2, …; an `Image` keeps its own."""
        sessions = [self.open(image, image_id=number) for number, image in enumerate(images, start=1)]
        return self.segment_sessions(sessions, queries, settings)

    def segment_sessions(
        self, sessions: Sequence[Session], queries: Queries, settings: Settings | None = None
    ) -> tuple[Segmentation, ...]:
        """`segment` for open sessions: only what they do not hold yet is computed."""
        settings = settings or self.settings
        parsed = self.check(queries, settings)
        if settings.tiles.tile:
            smallest = tuple(query.min_area for query in parsed)
            look = partial(self.segment_sessions, queries=parsed)
            return tuple(segment_views(session, look, settings, smallest) for session in sessions)
        tokens = self._encode(sessions, settings.maps)
        found = [self._sam_prompts(each, parsed, settings) for each in tokens]
        jobs = [(n, q, sam_prompt) for n, (_, wanted) in enumerate(found) for q, sam_prompt in wanted]
        embeddings = self._embed(sessions, {n for n, _, _ in jobs})
        candidates = self.sam.decode([(embeddings[n], sam_prompt.points) for n, _, sam_prompt in jobs])
        answers: dict[tuple[int, int], list[tuple[SamPrompt, Candidates]]] = {}
        for (n, q, sam_prompt), answer in zip(jobs, candidates, strict=True):
            answers.setdefault((n, q), []).append((sam_prompt, answer))
        thresholds = tuple(self._least_presence(query, settings) for query in parsed)
        kept: list[list[Segment]] = [[] for _ in sessions]
        for (n, q), own in answers.items():
            segments = cut(self.sam, embeddings[n], found[n][0], q, own, settings.masks)
            kept[n] += [segment for segment in segments if segment.area >= parsed[q].min_area]
        if settings.masks.compete:
            smallest = tuple(query.min_area for query in parsed)
            kept = [settle(segments, maps, smallest) for segments, (maps, _) in zip(kept, found, strict=True)]
        unread = tuple(query.name for query in parsed if self.clip.cuts(texts_of([query]), settings.maps))
        return tuple(
            Segmentation(session.image, tuple(segments), maps, thresholds, unread)
            for session, segments, (maps, _) in zip(sessions, kept, found, strict=True)
        )

    def _least_presence(self, query: Query, settings: Settings) -> float:
        """What was asked for, else the model's own threshold, which holds for maps as it was fitted to only."""
        for asked in (query.presence, settings.presence.presence):
            if asked is not None:
                return asked
        usual = settings.maps.architecture == "surgery" and settings.maps.input_size is None
        return self.clip.presence.threshold if usual else 0.0

    def _encode(self, sessions: Sequence[Session], settings: MapSettings) -> list[ImageTokens]:
        """CLIP tokens of every session; those not held yet are made in one batch."""
        size = settings.input_size or self.input_size
        rule = settings.architecture
        key = (self.clip.input_hw(size), rule)
        missing = [session for session in sessions if key not in session.tokens]
        fresh = self.clip.encode_images([session.image for session in missing], size=size, architecture=rule)
        for session, tokens in zip(missing, fresh, strict=True):
            session.tokens[key] = tokens
        return [session.tokens[key] for session in sessions]

    def _embed(self, sessions: Sequence[Session], wanted: set[int]) -> dict[int, SamEmbedding]:
        """SAM embeddings of the wanted sessions, by number; those not held yet are made in one batch."""
        missing = [sessions[n] for n in sorted(wanted) if sessions[n].embedding is None]
        for session, embedding in zip(missing, self.sam.embed([s.image for s in missing]), strict=True):
            session.embedding = embedding
        return {n: held for n in wanted if (held := sessions[n].embedding) is not None}

    def _sam_prompts(
        self, tokens: ImageTokens, queries: tuple[Query, ...], settings: Settings
    ) -> tuple[SimilarityMaps, list[tuple[int, SamPrompt]]]:
        """One map for every query, and what SAM is asked for: the query's number and the aim."""
        maps, made = query_maps(self.clip, tokens, queries, settings.maps)
        instances = settings.points.instances
        if instances == "auto":
            instances = "regions" if self.clip.presence.threshold > 0 else "union"
        found = []
        for number, (query, own) in enumerate(zip(queries, made, strict=True)):
            threshold = settings.points.threshold if query.threshold is None else query.threshold
            points = replace(settings.points, threshold=threshold, instances=instances)
            least, prompt = self._least_presence(query, settings), settings.masks.prompt
            of_query = sam_prompts(
                own.parts, own.patch_presence, maps.image_hw, points, own.negatives, prompt, least_presence=least
            )
            found += [(number, sam_prompt) for sam_prompt in of_query]
        return maps, found

    def _segment_points(
        self, session: Session, query: str | Query, points: PointPrompts, settings: Settings | None
    ) -> Segment:
        settings = settings or self.settings
        parsed = self.check([query], settings)
        if len(parsed) > 1:
            raise QueryError(f"points are of one query, got {len(parsed)}: {', '.join(each.name for each in parsed)}")
        maps, _ = query_maps(self.clip, self._encode([session], settings.maps)[0], parsed, settings.maps)
        embedding = self._embed([session], {0})[0]
        (candidates,) = self.sam.decode([(embedding, points)])
        chosen = int(by_sam(candidates).argmax())
        sam_prompt = SamPrompt(points, minmax(maps.scores)[0], presence=float(maps.presence[0]))
        return segment_of(self.sam, embedding, maps, 0, sam_prompt, candidates, chosen)


class Session:
    """One image with what was computed for it: CLIP's tokens for each input size and SAM's embedding.

    New queries or settings compute only what they must: other words no image encoding, another threshold
    only points and masks. The same holds for its first `KEPT_VIEWS` tiles, so that memory is bounded; further ones are
    encoded each time. Made by `Text2Seg.open`.
    """

    def __init__(self, models: Text2Seg, image: Image) -> None:
        self.image = image
        self.tokens: dict[tuple[tuple[int, int], str], ImageTokens] = {}
        self.embedding: SamEmbedding | None = None
        self._models = models
        self._tiles: dict[Box, Session] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the image and of all that is kept of it, its tiles included."""
        tensors = [tokens.features for tokens in list(self.tokens.values())]
        if self.embedding is not None:
            tensors.extend(self.embedding.tensors)
        own = self.image.pixels.nbytes + sum(tensor.nbytes for tensor in tensors)
        return own + sum(tile.nbytes for tile in list(self._tiles.values()))

    def view(self, xywh: Box | None) -> Session:
        """A session on a part of the image; none is all of it."""
        if xywh is None:
            return self
        session = self._tiles.get(xywh) or Session(self._models, crop(self.image, xywh))
        if len(self._tiles) < KEPT_VIEWS:
            self._tiles[xywh] = session
        return session

    def segment(self, queries: Queries, settings: Settings | None = None) -> Segmentation:
        """As `Text2Seg.segment`, on this image."""
        return self._models.segment_sessions([self], queries, settings)[0]

    def segment_points(self, query: str | Query, points: PointPrompts, settings: Settings | None = None) -> Segment:
        """The segment that a person's own points give.

        Args:
            query: what the segment is called; its map says how well the mask agrees.
            points: at least one, in pixels of the image.

        Raises:
            ValueError: there are no points.
            QueryError: as for `segment`.
        """
        return self._models._segment_points(self, query, points, settings)

    def candidate_mask(self, segment: Segment, index: int) -> NDArray[np.bool_]:
        """One of the candidates of a segment of this image as a mask bool[H, W]; raises `ValueError` if it has none."""
        embedding = self._models._embed([self.view(segment.view_xywh)], {0})[0]
        mask = self._models.sam.mask(embedding, segment.candidates, index)
        return place(mask, segment.view_xywh, self.image.hw)
