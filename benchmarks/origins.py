"""Table of the tools that text2seg grew from: what each does, how you do it here, and the measured agreement.

The formulas of each tool are written here once more, as plain float64 loops over the weights of the demo model (over
random weights for ResNets, which the demo has not). The agreement is the largest difference of a result of text2seg
from its formula, as a share of the largest value. Results are float32, so shares of about 1e-6 are rounding.

    python benchmarks/origins.py --write
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import clip as openai_clip
import numpy as np
import torch
from numpy.typing import NDArray
from page import SCENES, publish
from torch import Tensor, nn

from text2seg import Text2Seg
from text2seg.clip.model import Clip
from text2seg.config import MapSettings, PointSettings
from text2seg.explain import TOOLS, Result, run_tool
from text2seg.explain.activations import measure
from text2seg.explain.board import BoardSettings
from text2seg.explain.experiments import RepeatedSettings, squashed
from text2seg.explain.opinion import TEMPERATURE, straight_through
from text2seg.explain.recognition import recognise
from text2seg.explain.saliency.methods import saliency
from text2seg.explain.saliency.targets import Target, image_target, text_target
from text2seg.explain.tokens import tokens_of
from text2seg.explain.tool import mean_colour
from text2seg.explain.words import WordsSettings, token_relevance
from text2seg.io.images import load_image
from text2seg.prompts import text2points
from text2seg.records import Image
from text2seg.runtime import FULL
from text2seg.templates import TEMPLATES

Array = NDArray[np.float64]
WORDS = ("sheep", "fire engine", "bomb")
TEXT = "a sheep beside a fire engine"
HEADINGS = ("tool of origin", "what it does", "how you do it here", "largest difference")
SURGERY, MINICLIP, CHEFER = "CLIP Surgery and its fork", "miniClip", "relevance maps (Chefer et al.)"
LAST_GRAD, EXPERIMENTS = "relevance by the last gradient", "CLIP experiments"

Row = tuple[str, str, str, float]


class Tower:
    """A transformer tower of a CLIP in float64: blocks of attention, computed head by head, and of a feed-forward."""

    def __init__(self, blocks: Sequence[Any]) -> None:
        self.blocks = list(blocks)

    def run(self, tokens: Tensor, *, causal: bool = False) -> tuple[list[list[Tensor]], list[Tensor], Tensor]:
        """Return the attentions [N, N] of each block and head, the input [N, width] of each block, and the output."""
        attentions, inputs = [], []
        for block in self.blocks:
            inputs.append(tokens)
            heads, mixed = self.attend(block, tokens, causal)
            attentions.append(heads)
            tokens = tokens + mixed
            hidden = linear(block.mlp.c_fc, norm(block.ln_2, tokens))
            tokens = tokens + linear(block.mlp.c_proj, hidden / (1 + torch.exp(-1.702 * hidden)))
        return attentions, inputs, tokens

    def attend(
        self, block: Any, tokens: Tensor, causal: bool, *, values_only: bool = False
    ) -> tuple[list[Tensor], Tensor]:
        """Return the attention of each head and the output of the block's attention; values attend to values with
        `values_only`."""
        attn, normed = block.attn, norm(block.ln_1, tokens)
        projected = normed @ attn.in_proj_weight.T + attn.in_proj_bias
        width = projected.shape[1] // 3
        size = width // attn.num_heads
        heads, parts = [], []
        for head in range(attn.num_heads):
            query, key, value = (projected[:, at * width :][:, head * size : (head + 1) * size] for at in range(3))
            if values_only:
                query = key = value
            scores = query @ key.T / size**0.5
            if causal:
                scores = scores + torch.full_like(scores, -torch.inf).triu(1)
            weights = scores.exp() / scores.exp().sum(1, keepdim=True)
            heads.append(weights)
            parts.append(weights @ value)
        return heads, linear(attn.out_proj, torch.cat(parts, dim=1))


class Plain:
    """A vision transformer of OpenAI's shape in float64, with its text tower."""

    def __init__(self, clip: Clip) -> None:
        self.model = copy.deepcopy(clip.model).double().requires_grad_(False)
        for module in self.model.modules():
            if isinstance(module, nn.LayerNorm):
                module.__class__ = nn.LayerNorm  # CLIP's own computes in float32
        self.visual = self.model.visual
        self.queries: dict[str, Tensor] = {}
        self.images, self.texts = Tower(self.visual.transformer.resblocks), Tower(self.model.transformer.resblocks)

    def start(self, pixels: Tensor) -> Tensor:
        """Return the tokens [1 + patches, width] that enter the first block."""
        visual, side = self.visual, self.visual.conv1.kernel_size[0]
        kernels = visual.conv1.weight.flatten(1)
        height, width = (length // side for length in pixels.shape[1:])
        patches = [
            kernels @ pixels[:, row * side : (row + 1) * side, column * side : (column + 1) * side].flatten()
            for row in range(height)
            for column in range(width)
        ]
        tokens = torch.stack([visual.class_embedding, *patches]) + visual.positional_embedding
        return norm(visual.ln_pre, tokens)

    def image(self, tokens: Tensor) -> Tensor:
        """Return the features of tokens in the joint space, not normalised."""
        return norm(self.visual.ln_post, tokens) @ self.visual.proj

    def surgery(self, pixels: Tensor) -> Tensor:
        """Return the unit features [1 + patches, C] of architecture surgery."""
        _, inputs, last = self.images.run(self.start(pixels))
        depth = len(inputs)
        first = depth - (6 if depth >= 12 else depth // 2)
        patches = inputs[first]
        for at in range(first, depth):
            patches = patches + self.images.attend(self.images.blocks[at], inputs[at], False, values_only=True)[1]
        return unit(self.image(torch.cat([last[:1], patches[1:]])))

    def text(self, text: str) -> Tensor:
        """Return the unit features [C] of a text."""
        return unit(self.text_run(text)[1])

    def text_run(self, text: str) -> tuple[list[list[Tensor]], Tensor]:
        """Return the attentions of the text tower, and the features [C], not normalised."""
        ids = openai_clip.tokenize([text], context_length=self.model.positional_embedding.shape[0])[0]
        ids = ids[: int(ids.argmax()) + 1]
        tokens = self.model.token_embedding.weight[ids] + self.model.positional_embedding[: len(ids)]
        tokens.requires_grad_()
        attentions, _, tokens = self.texts.run(tokens, causal=True)
        return attentions, (norm(self.model.ln_final, tokens) @ self.model.text_projection)[-1]

    def query(self, word: str) -> Tensor:
        """Return the unit features [C] of a word in CLIP Surgery's templates."""
        if word not in self.queries:
            features = [self.text(each.replace("{}", word)) for each in TEMPLATES]
            self.queries[word] = unit(torch.stack(features).mean(0)).detach()
        return self.queries[word]

    def relevance(self, pixels: Tensor, target: Tensor, *, blocks: int, last_gradient: bool = False) -> Array:
        """Return Chefer et al.'s relevance of the patches to the logit, over the last `blocks` blocks."""
        tokens = self.start(pixels).requires_grad_()
        attentions, _, last = self.images.run(tokens)
        logit = self.scale * unit(self.image(last[:1]))[0] @ target
        return carried(logit, attentions[-blocks:], last_gradient=last_gradient)[0, 1:]

    @property
    def scale(self) -> float:
        return float(self.model.logit_scale.exp())


def norm(layer: Any, tokens: Tensor) -> Tensor:
    centred = tokens - tokens.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def linear(layer: Any, tokens: Tensor) -> Tensor:
    return tokens @ layer.weight.T + layer.bias


def unit(features: Tensor) -> Tensor:
    return features / features.square().sum(-1, keepdim=True).sqrt()


def carried(score: Tensor, attentions: Sequence[Sequence[Tensor]], *, last_gradient: bool = False) -> Array:
    """Return R of Chefer et al.: R = I; for each block Ā = mean over heads of ReLU(∂s/∂A ⊙ A), R ← R + ĀR."""
    slopes = torch.autograd.grad(score, [head for block in attentions for head in block], retain_graph=True)
    heads = len(attentions[0])
    relevance = np.eye(len(attentions[0][0]))
    for number, block in enumerate(attentions):
        first = (len(attentions) - 1 if last_gradient else number) * heads
        mean = np.zeros_like(relevance)
        for head, slope in zip(block, slopes[first : first + heads], strict=True):
            mean += np.maximum((slope * head).detach().numpy(), 0) / heads
        relevance = relevance + mean @ relevance
    return relevance


def difference(found: Any, expected: Any) -> float:
    """Return the largest difference as a share of the largest expected value."""
    found, expected = (
        np.asarray(each.detach() if isinstance(each, Tensor) else each, np.float64).ravel()
        for each in (found, expected)
    )
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def surgery_rows(models: Text2Seg, plain: Plain, image: Image) -> list[Row]:
    """Compare maps, feature surgery and points."""
    clip = models.clip
    pixels = clip.preprocess(image).double()
    tokens, texts = plain.surgery(pixels), torch.stack([plain.query(word) for word in WORDS])
    (seen,) = clip.encode_images([image])
    cosines = tokens[1:] @ texts.T
    empty = tokens[1:] @ (texts - plain.query("")).T
    of_set = (2 * tokens[0] @ texts.T).softmax(0) * len(WORDS) * cosines
    of_set = of_set - of_set.mean(1, keepdim=True)
    rows = []
    for redundancy, expected, what in (
        ("none", cosines, "architecture surgery: the map of a text"),
        ("empty", empty, "feature surgery for one text, by the empty text"),
        ("label-set", of_set, "feature surgery for a set of labels"),
    ):
        settings = MapSettings(redundancy=redundancy)
        found = clip.scores(seen, WORDS, settings).reshape(len(WORDS), -1)
        rows.append((SURGERY, what, f"`segment --redundancy {redundancy}`", difference(found, expected.T)))
    found_maps = clip.scores(seen, WORDS, MapSettings(redundancy="empty"))
    settings = PointSettings(method="reference", downsample=1)
    wrong = [
        difference(prompts.xy, points(empty.T[at].detach().numpy().reshape(seen.grid_hw), image.hw, settings.threshold))
        for at, prompts in enumerate(text2points(found_maps, image.hw, settings))
    ]
    rows.append((SURGERY, "points for SAM: pixels of the image", "`segment --method reference`", max(wrong)))
    labels = clip.encode_texts(WORDS)
    cls = (2 * tokens[0] @ texts.T).softmax(0) * len(WORDS) * (tokens[0] @ texts.T)
    found_scores = recognise(seen.features[0], labels, surgery=True)
    rows.append(
        (SURGERY, "multi-label recognition", "`explain multilabel`", difference(found_scores, cls - cls.mean()))
    )
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 7, generator=random, dtype=torch.float64, requires_grad=True)
    slope = torch.randn(3, 7, generator=random, dtype=torch.float64)
    soft = (logits / TEMPERATURE).softmax(-1)
    (by_autograd,) = torch.autograd.grad((soft * slope).sum(), logits)
    ours = straight_through(soft.detach().float(), slope.float())
    rows.append(
        (
            SURGERY,
            "CLIP's own words: gradient through the choice of tokens",
            "`explain opinion`, `explain run-all`",
            difference(ours, by_autograd),
        )
    )
    return rows


def points(scores: Array, image_hw: tuple[int, int], threshold: float) -> Array:
    """Return the points of CLIP Surgery: the n highest cells and the n lowest, as x and y in the image."""
    stretched = (scores - scores.min()) / (scores.max() - scores.min())
    order = np.argsort(stretched.ravel(), kind="stable")
    count = min(int((stretched >= threshold).sum()), len(order) // 2)
    cells = [*order[len(order) - count :], *order[:count]]
    (height, width), (rows, columns) = image_hw, scores.shape
    found = []
    for cell in cells:
        row, column = divmod(int(cell), columns)
        x, y = int((column + 0.5) * width / columns), int((row + 0.5) * height / rows)
        found.append((min(x, width - 1), min(y, height - 1)))
    return np.array(found, np.float64)


def miniclip_rows(models: Text2Seg, plain: Plain, image: Image) -> list[Row]:
    """Compare the scores of the board, and Grad-CAM on a ResNet with random weights."""
    clip = models.clip
    result = run_tool(TOOLS["board"], models, [image], BoardSettings(text=WORDS, prefix="an image of"))
    _, _, last = plain.images.run(plain.start(clip.preprocess(image).double()))
    cls = unit(plain.image(last[:1]))[0]
    cosines = torch.stack([plain.text(f"an image of {word}") for word in WORDS]) @ cls
    logits = cosines * plain.scale
    rows = []
    for name, expected in (("cosine", cosines), ("logit", logits), ("softmax", logits.softmax(0))):
        how = "`explain board`" if name == "cosine" else f"`explain board --score {name}`"
        rows.append(
            (MINICLIP, f"board: {name} of several descriptions", how, difference(column(result, name), expected))
        )
    resnet = random_resnet()
    target = Target(
        "it", unit(torch.randn(32, generator=torch.Generator().manual_seed(3)))
    )  # a map that is not 0 everywhere
    found = saliency(resnet, image, target, "gradcam")
    expected_map = resnet_gradcam(resnet, resnet.preprocess(image).double(), target.features.double())
    rows.append(
        (
            MINICLIP,
            "Grad-CAM on a ResNet, by the dot product",
            "`explain board --method gradcam`",
            difference(found, expected_map),
        )
    )
    own = saliency(resnet, image, image_target(resnet, image), "gradcam", score="dot")
    own_target = image_target(resnet, image).features.double()
    expected_map = resnet_gradcam(resnet, resnet.preprocess(image).double(), own_target)
    rows.append(
        (
            MINICLIP,
            "the map of the image's own features",
            "`explain board`, second panel",
            difference(own, expected_map),
        )
    )
    return rows


def random_resnet() -> Clip:
    """Return a small ResNet CLIP of OpenAI's shape with random weights."""
    torch.manual_seed(0)
    model = openai_clip.model.CLIP(32, 64, (1, 1, 1, 1), 8, None, 16, 49408, 32, 2, 1).eval()
    for name, parameter in model.named_parameters():
        if "bn" in name and name.endswith("weight"):
            nn.init.uniform_(parameter, 0.5, 1.5)  # CLIP's own initialisation makes the last of each block zero
    device = torch.device("cpu")
    return Clip(model, device=device, precision=FULL)


def resnet_gradcam(clip: Clip, pixels: Tensor, target: Tensor) -> Array:
    """Return Grad-CAM [h, w]: channels of the last layer weighted by their mean gradient of features · target, ReLU."""
    visual = copy.deepcopy(clip.model.visual).double()
    kept: list[Tensor] = []
    hook = visual.layer4.register_forward_hook(lambda _module, _given, found: kept.append(found))
    features = visual(pixels[None])[0]
    hook.remove()
    (slope,) = torch.autograd.grad(features @ target, kept[0])
    found = np.zeros(kept[0].shape[2:])
    for channel, weight in enumerate(slope[0].mean((1, 2)).tolist()):
        found += weight * kept[0][0, channel].detach().numpy()
    return np.maximum(found, 0)


def relevance_rows(models: Text2Seg, plain: Plain, image: Image) -> list[Row]:
    """Compare the relevance methods, and the tools that are made of them."""
    clip = models.clip
    pixels, depth = clip.preprocess(image).double(), len(plain.images.blocks)
    target = text_target(clip, "sheep")
    features = plain.query("sheep")
    rows = []
    for origin, method, blocks, what in (
        (CHEFER, "relevance-last", 1, "relevance of the patches, last block"),
        (CHEFER, "relevance", depth, "relevance of the patches, all blocks"),
        (LAST_GRAD, "relevance-last-grad", depth, "relevance with the last block's gradient"),
    ):
        found = saliency(clip, image, target, method)
        expected = plain.relevance(pixels, features, blocks=blocks, last_gradient=method == "relevance-last-grad")
        rows.append((origin, what, f"`explain saliency --method {method}`", difference(found, expected)))
    against = saliency(clip, image, target, "relevance", negative=True)
    expected = plain.relevance(pixels, -features, blocks=depth)
    rows.append(
        (LAST_GRAD, "what lowers the score", "`explain signed`, `saliency --negative`", difference(against, expected))
    )
    _, _, last = plain.images.run(plain.start(pixels))
    cls = unit(plain.image(last[:1]))[0]
    attentions, of_text = plain.text_run(TEXT)
    of_tokens = carried(plain.scale * unit(of_text) @ cls, attentions)[-1, 1:-1]
    _, shares = token_relevance(clip, tokens_of(clip, TEXT), image_target(clip, image).features)
    rows.append(
        (
            CHEFER,
            "relevance of the tokens of a text",
            "`explain token-relevance`",
            difference(shares, of_tokens / of_tokens.sum()),
        )
    )
    result = run_tool(TOOLS["words"], models, [image], WordsSettings(text="sheep bomb"))
    whole, *others = ((plain.text(text) @ cls).item() for text in ("sheep bomb", "bomb", "sheep"))
    added = [whole - each for each in others]
    rows.append(
        (
            LAST_GRAD,
            "what each word adds to the score",
            "`explain words`",
            difference(column(result, "score it adds"), added),
        )
    )
    return rows


def experiment_rows(models: Text2Seg, plain: Plain, image: Image) -> list[Row]:
    """Compare the curve of greying out at its two ends, and the activations."""
    clip = models.clip
    settings = RepeatedSettings(text="sheep", repeats=1, steps=1)
    tables = {each.title: each for each in run_tool(TOOLS["experiment-grey"], models, [image], settings).tables}
    grey = Image(np.broadcast_to(mean_colour(), image.pixels.shape).copy())
    query = plain.query("sheep")
    cls = [
        unit(plain.image(plain.images.run(plain.start(clip.preprocess(each).double()))[2][:1]))[0]
        for each in (image, grey)
    ]
    rows = []
    for title, partner in (("the text", query), ("the untouched image", cls[0])):
        table = tables[f"cosine with {title}, mean of the runs"]
        found = [row[1] for row in table.rows]
        rows.append(
            (
                EXPERIMENTS,
                f"greying out: cosine with {title}",
                "`explain experiment-grey`",
                difference(found, [float(each @ partner) for each in cls]),
            )
        )
    shown = squashed(clip, image)
    _, inputs, _ = plain.images.run(plain.start(clip.preprocess(Image(shown)).double()))
    expected = []
    for block, tokens in zip(plain.images.blocks, inputs, strict=True):
        tokens = tokens + plain.images.attend(block, tokens, False)[1]
        hidden = linear(block.mlp.c_fc, norm(block.ln_2, tokens))
        active = hidden / (1 + torch.exp(-1.702 * hidden))
        expected.append([float((active <= 0).double().mean()), float(active.abs().mean())])
    found = measure(clip, shown)
    rows.append(
        (
            EXPERIMENTS,
            "activations after GELU, block by block",
            "`explain experiment-activations`",
            difference(found[:, 1], np.array(expected)[:, 1]),
        )
    )
    return rows


def column(result: Result, name: str) -> list[float]:
    """Return a column of the first table of a result."""
    table = result.tables[0]
    return [float(row[table.columns.index(name)] or 0) for row in table.rows]


PARTS: tuple[Callable[[Text2Seg, Plain, Image], list[Row]], ...] = (
    surgery_rows,
    miniclip_rows,
    relevance_rows,
    experiment_rows,
)


def measured(image: Path) -> list[Row]:
    """Return all rows of the table, on the demo model."""
    models = Text2Seg.load("demo", device="cpu", precision="fp32")
    plain = Plain(models.clip)
    return [row for part in PARTS for row in part(models, plain, load_image(image))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, default=SCENES / "new-scenes" / "images" / "scene_0019.jpg")
    parser.add_argument("--write", action="store_true", help="write the table into docs/measurements/origins.md")
    flags = parser.parse_args()
    rows = [(*row[:3], f"{row[3]:.0e}" if row[3] else "0") for row in measured(flags.image)]
    lines = [HEADINGS, ["---"] * len(HEADINGS), *rows]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    publish("origins", table, page="origins.md", how="benchmarks/origins.py --write", write=flags.write)


if __name__ == "__main__":
    main()
