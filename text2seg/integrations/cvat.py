"""CVAT: an auto-annotation function for the package cvat-sdk.

Interface: https://docs.cvat.ai/docs/api_sdk/sdk/auto-annotation. `cvat-cli` calls `create` of the module that
`--function-module` names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from text2seg.coco.dataset import segment_score
from text2seg.coco.simplify import encode as polygons_of
from text2seg.config import POLYGON_TOLERANCE
from text2seg.errors import SettingsError
from text2seg.io.images import load_image
from text2seg.ontology import Ontology, ontology_of_queries, queries_of
from text2seg.ontology.read import read_ontology

if TYPE_CHECKING:
    from text2seg.session import Pipeline


def create(*, ontology: str = "", queries: str = "", model: str = "auto", device: str = "auto") -> Function:
    """Return a function that finds what an ontology or queries name.

    Args:
        ontology: file of an ontology; its categories are the labels.
        queries: instead of an ontology, names with commas between them.
        model, device: as for `Text2Seg.load`.

    Raises:
        SettingsError: neither or both of ontology and queries are given, or cvat-sdk is not installed.
        OntologyError, QueryError, CheckpointError: they cannot be used.
    """
    if bool(ontology) == bool(queries):
        raise SettingsError(
            "give either an ontology, as -p ontology=str:things.yaml, or queries, as -p queries=str:dog"
        )
    from text2seg.pipeline import Text2Seg

    wanted = read_ontology(ontology) if ontology else ontology_of_queries(queries)
    return Function(Text2Seg.load(model, device=device), wanted)


class Function:
    """A detection function of `cvat_sdk.auto_annotation`: masks, or polygons if the caller asks for them."""

    def __init__(self, models: Pipeline, ontology: Ontology) -> None:
        """Raises `QueryError` if the models cannot look for a category, `SettingsError` without cvat-sdk."""
        try:
            import cvat_sdk.auto_annotation as cvat
            from cvat_sdk.masks import encode_mask
        except ImportError as error:
            raise SettingsError("this needs the package cvat-sdk: pip install cvat-sdk") from error
        self._cvat, self._encode_mask = cvat, encode_mask
        self._models, self._queries = models, models.check(queries_of(ontology))
        self._ids = {category.name: category.id for category in ontology.categories}
        self.spec = cvat.DetectionFunctionSpec(
            labels=[cvat.label_spec(name, number, type="mask") for name, number in self._ids.items()]
        )

    def detect(self, context: Any, image: Any) -> list[Any]:
        """Return the shapes of an image, a Pillow image. Those below the context's confidence threshold are left out;
        the confidence is the score of the COCO file. Raises `ImageError` if the image cannot be used."""
        result = self._models.segment(load_image(image, file_name=context.frame_name), self._queries)
        shapes = []
        for segment in result.segments:
            if not segment.area or segment_score(segment, result) < (context.conf_threshold or 0):
                continue
            number = self._ids[segment.query]
            if context.conv_mask_to_poly:
                shapes += [self._cvat.polygon(number, each) for each in polygons_of(segment.mask, POLYGON_TOLERANCE)]
            else:
                shapes.append(self._cvat.mask(number, self._encode_mask(segment.mask)))
        return shapes
