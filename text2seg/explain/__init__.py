"""Explanation tools: what CLIP looks at, what it says, and how far its explanations can be trusted.

`GROUPS` lists all tools. The command line and the app are made from it. A new tool is one file with its settings, its
function and its `Tool`, and one line here.
"""

from collections.abc import Mapping

from text2seg.explain.activations import EXPERIMENT_ACTIVATIONS
from text2seg.explain.average_map import AVERAGE_MAP
from text2seg.explain.board import BOARD, TYPOGRAPHIC_ATTACK
from text2seg.explain.experiments import EXPERIMENT_GREY, EXPERIMENT_NOISE, EXPERIMENT_PREPROCESSING
from text2seg.explain.faithfulness import FAITHFULNESS
from text2seg.explain.keywords import KEYWORDS
from text2seg.explain.layers import LAYERS
from text2seg.explain.opinion import OPINION
from text2seg.explain.pixel_attack import EXPERIMENT_PIXELS
from text2seg.explain.recognition import MULTILABEL, SEMANTIC
from text2seg.explain.recognition_scores import RECOGNITION_SCORES
from text2seg.explain.run_all import RUN_ALL
from text2seg.explain.saliency_maps import COMPARE, SALIENCY, SIGNED
from text2seg.explain.similarity_table import SIMILARITY_TABLE
from text2seg.explain.text_visualisation import TEXT_VISUALISATION
from text2seg.explain.tool import Panel, Progress, Result, Table, Tool, run_tool, save_result
from text2seg.explain.words import TOKEN_RELEVANCE, WORDS
from text2seg.io.scan import ImageFiles

__all__ = [
    "GROUPS",
    "TOOLS",
    "ImageFiles",
    "Panel",
    "Progress",
    "Result",
    "Table",
    "Tool",
    "run_tool",
    "save_result",
]

GROUPS: Mapping[str, tuple[Tool, ...]] = {
    "Similarity": (BOARD, TYPOGRAPHIC_ATTACK, SIMILARITY_TABLE),
    "Saliency": (SALIENCY, COMPARE, SIGNED, LAYERS, AVERAGE_MAP, FAITHFULNESS),
    "Text": (WORDS, TOKEN_RELEVANCE, TEXT_VISUALISATION, KEYWORDS),
    "CLIP's words": (OPINION, RUN_ALL),
    "Recognition": (MULTILABEL, SEMANTIC, RECOGNITION_SCORES),
    "Experiments": (
        EXPERIMENT_GREY,
        EXPERIMENT_PREPROCESSING,
        EXPERIMENT_ACTIVATIONS,
        EXPERIMENT_NOISE,
        EXPERIMENT_PIXELS,
    ),
}
TOOLS: Mapping[str, Tool] = {tool.name: tool for tools in GROUPS.values() for tool in tools}
