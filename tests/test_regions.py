"""Region classification: features of regions against plain loops, and the words of masks with the demo models."""

from __future__ import annotations

import copy
import json
import math
import weakref
from dataclasses import replace
from pathlib import Path

import builders
import numpy as np
import openclip_builders as models
import pytest
import torch
from closeness import DEMO_NETWORK, TINY_NETWORK, assert_close, assert_same_masks
from PIL import Image as PilImage
from sam2_builders import random_weights, small_config
from test_attention import CPU, tiny_clip
from torch import nn

from text2seg import PointSettings, Settings, Text2Seg, regions
from text2seg.cli import main
from text2seg.clip.model import MOST_EVIDENCE, ImageTokens, preprocess
from text2seg.clip.regions import (
    REGISTER_GAP,
    attention_weights,
    image_values,
    owners_of_patches,
    patch_features,
    registers,
    soft_masks,
    value_features,
    vit_of,
)
from text2seg.coco.dataset import build_dataset, read_dataset, segment_score
from text2seg.coco.provenance import attributes_for
from text2seg.config import MapSettings, MaskSettings, PresenceSettings, TileSettings
from text2seg.errors import QueryError, SettingsError
from text2seg.grids import iou, resize, tight_box
from text2seg.io.images import load_image
from text2seg.model_card import NO_CARD, RegionChoice, RegionClassification
from text2seg.queries import parse_queries
from text2seg.records import Image
from text2seg.regions import GRID, FoundRegions, RegionClassifier, quality
from text2seg.review.replay import replay
from text2seg.sam.automatic import Region, automatic_regions, grid, owners
from text2seg.sam.sam2 import Sam2

SCENES = Path(__file__).parents[1] / "text2seg" / "demo" / "scenes" / "new-scenes" / "images"
SCENE = SCENES / "scene_0019.jpg"  # two sheep and a fire engine
REGIONS = Settings(points=PointSettings(method="regions"))
HW = (40, 72)  # CLIP of 32 pixels: one crop down, two across


def masks_of(hw):
    """Three masks: one side, a corner that overlaps it, and a few pixels elsewhere."""
    masks = np.zeros((3, *hw), np.bool_)
    masks[0, :, : hw[1] // 2] = True
    masks[1, : hw[0] // 2, hw[1] // 4 : 3 * hw[1] // 4] = True
    masks[2, -9:, -7:] = True
    return list(masks)


# --- TextRegion's feature once more, as slow and plain as can be -----------------------------------------------------


def linear(weight, bias, x):
    return [
        sum(float(w) * v for w, v in zip(row, x, strict=True)) + float(b) for row, b in zip(weight, bias, strict=True)
    ]


def norm(layer, x):
    mean = sum(x) / len(x)
    spread = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + layer.eps)
    return [(v - mean) / spread * float(w) + float(b) for v, w, b in zip(x, layer.weight, layer.bias, strict=True)]


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def plain_values(visual, pixels):
    """The values of the last block of one input, a list of numbers for each patch, by rows."""
    *blocks, last = visual.transformer.resblocks
    x = visual.conv1(pixels[None]).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(1, 1, -1), x], 1) + visual.positional_embedding
    x = visual.ln_pre(x)
    for block in blocks:
        y = block.ln_1(x)
        y = y if block.attn.batch_first else y.transpose(0, 1)
        y = block.attn(y, y, y, need_weights=False)[0].reshape(x.shape)
        x = x + getattr(block, "ls_1", nn.Identity())(y)
        x = x + getattr(block, "ls_2", nn.Identity())(block.mlp(block.ln_2(x)))
    width = x.shape[-1]
    weight, bias = last.attn.in_proj_weight[2 * width :].tolist(), last.attn.in_proj_bias[2 * width :].tolist()
    return [linear(weight, bias, norm(last.ln_1, token)) for token in x[0, 1:].tolist()]


def plain_registers(values, shares):
    similar = [[cosine(a, b) for b in values] for a in values]
    left_out = []
    for p in range(len(values)):
        inside, outside = [], []
        for row in shares:
            affinity = sum(share * similar[p][q] for q, share in enumerate(row)) / sum(row)
            (inside if row[p] > 0 else outside).append(affinity)
        gap = sum(inside) / len(inside) - sum(outside) / len(outside) if inside and outside else math.inf
        left_out.append(gap < REGISTER_GAP)
    return left_out


def plain_feature(visual, values, row, left_out):
    """The unit feature of one region in the space of texts, head by head."""
    block = visual.transformer.resblocks[-1]
    heads, width = block.attn.num_heads, len(values[0])
    size = width // heads
    summed = []
    for head in range(heads):
        for channel in range(head * size, (head + 1) * size):
            kept = zip(row, values, left_out, strict=True)
            summed.append(sum(share * value[channel] for share, value, out in kept if not out))
    y = torch.tensor(linear(block.attn.out_proj.weight.tolist(), block.attn.out_proj.bias.tolist(), summed))
    y = getattr(block, "ls_1", nn.Identity())(y.double())
    more = block.mlp(torch.tensor(norm(block.ln_2, y.tolist())).double()[None])[0]
    y = y + getattr(block, "ls_2", nn.Identity())(more)
    projected = (torch.tensor(norm(visual.ln_post, y.tolist())).double() @ visual.proj).tolist()
    length = math.sqrt(sum(v * v for v in projected))
    return [v / length for v in projected]


def exact(clip):
    """The image tower in float64; CLIP's own LayerNorm would go through float32."""
    tower = copy.deepcopy(clip._model.visual).double()
    for module in tower.modules():
        if isinstance(module, nn.LayerNorm):
            module.__class__ = nn.LayerNorm
    return tower


@pytest.fixture(scope="module", params=["openai", "layer_scale", "quick_gelu"])
def clip(request, tmp_path_factory):
    if request.param == "openai":
        return tiny_clip()
    configuration = models.CONFIGS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return models.opened(models.write_folder(folder, configuration, models.module(configuration).state_dict()))


def plain_image_values(clip, image):
    """The values of the crops side by side, each added to those of the whole image, enlarged bilinearly."""
    visual, side = exact(clip), clip.trained_size
    across = max(round(image.hw[1] / side), 1)
    down = max(round(image.hw[0] / side), 1)
    enlarged = preprocess(image, (down * side, across * side), clip.images).double()
    cells = side // clip.stride
    whole = np.array(plain_values(visual, preprocess(image, (side, side), clip.images).double()))
    whole = whole.reshape(cells, cells, -1)
    result = np.zeros((down * cells, across * cells, whole.shape[-1]))
    for i in range(down):
        for j in range(across):
            part = enlarged[:, i * side : (i + 1) * side, j * side : (j + 1) * side]
            result[i * cells : (i + 1) * cells, j * cells : (j + 1) * cells] = np.array(
                plain_values(visual, part)
            ).reshape(cells, cells, -1)
    for row in range(result.shape[0]):
        for column in range(result.shape[1]):
            y = min(max((row + 0.5) / down - 0.5, 0), cells - 1)
            x = min(max((column + 0.5) / across - 0.5, 0), cells - 1)
            top, left = min(int(y), cells - 2), min(int(x), cells - 2)
            for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weight = (1 - abs(y - top - dy)) * (1 - abs(x - left - dx))
                result[row, column] += weight * whole[top + dy, left + dx]
    return result


def test_values_of_crops_and_image_are_those_of_plain_loops(clip):
    image = Image(builders.pixels(HW))
    with torch.inference_mode():
        found = image_values(clip, vit_of(clip), image)
    assert_close(found, plain_image_values(clip, image), terms=TINY_NETWORK)


def test_region_features_are_those_of_plain_loops(clip):
    """Registers, sums head by head, the rest of the block and the projection."""
    image, masks = Image(builders.pixels(HW)), masks_of(HW)
    values = plain_image_values(clip, image)
    shares = soft_masks(masks, values.shape[:2]).flatten(1).tolist()
    flat = values.reshape(-1, values.shape[-1]).tolist()
    left_out = plain_registers(flat, shares)
    visual = exact(clip)
    expected = [plain_feature(visual, flat, row, left_out) for row in shares]
    assert_close(value_features(clip, image, masks), expected, terms=TINY_NETWORK)


def test_registers_are_left_out_and_shared_patches_kept():
    """The first two patches look alike and belong to one region; the third is in both regions, the last in none."""
    values = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.5, 0.5], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    shares = torch.tensor([[1.0, 1.0, 0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.5, 1.0, 1.0, 0.0]])
    found = registers(values, shares).tolist()
    assert found == plain_registers(values.double().tolist(), shares.tolist())
    assert found == [False, False, False, False, True, False]  # the fifth looks like the first region, not like its own


def test_a_region_without_patches_of_its_own_has_the_mean_of_all_that_it_touches():
    features = torch.nn.functional.normalize(torch.randn(1 + 12, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    tokens = ImageTokens(features, (3, 4), (24, 32))
    large, small = np.zeros((24, 32), np.bool_), np.zeros((24, 32), np.bool_)
    large[:8, :20] = True  # two cells and a half of the first row: the third belongs to it
    small[6:10, 6:10] = True  # a sixteenth of four cells
    found = patch_features(tokens, [large, small])
    patches = features[1:].reshape(3, 4, 5)
    mean = patches[0, 0] + patches[0, 1] + 0.5 * patches[0, 2]
    corners = patches[0, 0] + patches[0, 1] + patches[1, 0] + patches[1, 1]
    assert_close(found, torch.stack([mean / mean.norm(), corners / corners.norm()]), terms=TINY_NETWORK)


def test_values_need_a_vision_transformer_that_torch_runs():
    resnet, vit = tiny_clip("resnet"), tiny_clip()
    with pytest.raises(SettingsError, match="this CLIP is a ResNet; use patches"):
        value_features(resnet, builders.image(), masks_of((24, 32)))
    vit.image_network = lambda pixels, rule: pixels
    with pytest.raises(SettingsError, match="run with torch only"):
        value_features(vit, builders.image(), masks_of((24, 32)))


def test_siglip_has_values_too(tmp_path):
    """Its tower is timm's, its features those of its pooling head."""
    configuration = models.CONFIGS["siglip"]
    clip = models.opened(models.write_folder(tmp_path, configuration, models.module(configuration).state_dict()))
    found = value_features(clip, Image(builders.pixels(HW)), masks_of(HW))
    assert found.shape == (3, clip.encode_texts(["dog"], ("a {}.",)).shape[1])
    assert_close(found.norm(dim=-1), np.ones(3), terms=TINY_NETWORK)


# --- from regions to segments ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo():
    return Text2Seg.load("demo", precision="fp32")


@pytest.fixture(scope="module")
def session(demo):
    return demo.open(SCENE)


def test_regions_get_their_words_and_absent_things_get_none(demo, session):
    result = session.segment("sheep, fire engine, koala", REGIONS)
    assert [len(result.of(name)) for name in ("sheep", "fire engine", "koala")] == [2, 1, 0]
    assert result.verdict("koala").startswith("not found (0.")
    auto = session.segment("sheep, fire engine")
    for segment in auto.segments:
        assert max(iou(segment.mask, each.mask) for each in result.of(segment.query)) > 0.8
    for segment in result.segments:
        np.testing.assert_array_equal(session.candidate_mask(segment, segment.chosen), segment.mask)


def test_more_words_change_no_segment_and_decode_nothing_anew(demo, monkeypatch):
    session, asked = demo.open(SCENE), []
    decode = demo.sam.decode
    monkeypatch.setattr(demo.sam, "decode", lambda sets, **more: asked.append(len(sets)) or decode(sets, **more))
    few = session.segment("sheep", REGIONS)
    grid_points = sum(asked) - len(few.segments)
    asked.clear()
    many = session.segment(demo.closed_vocabulary.names, REGIONS)
    assert 0 < grid_points < GRID.points_per_side**2  # none where CLIP sees nothing
    assert sum(asked) == len({segment.points.xy.tobytes() for segment in many.segments})
    for one, other in zip(few.of("sheep"), many.of("sheep"), strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
        assert one.presence == pytest.approx(other.presence, abs=1e-6)


def test_without_a_card_every_query_gets_a_region_and_presence_is_not_calibrated(demo):
    bare = demo.with_card(demo.card.uncalibrated())
    result = bare.segment(SCENE, "sheep, fire engine, koala", REGIONS)
    assert all(len(result.of(name)) for name in ("sheep", "fire engine", "koala"))
    assert result.maps.presence_of("koala").endswith("not calibrated")
    assert bare.provenance(REGIONS)["presence"]["calibrated"] is False
    assert demo.provenance(REGIONS)["presence"] == {"calibrated": True, "threshold": 0.5}


def test_features_other_than_those_of_the_card_are_not_calibrated(demo, session):
    values = replace(REGIONS, maps=MapSettings(region_features="values"))
    assert demo.default_presence(values) is None
    result = session.segment("sheep, fire engine", values)
    assert len(result.of("fire engine")) == 1


def test_an_image_without_regions_has_no_segments(demo):
    result = demo.segment(np.full((60, 80, 3), 255, np.uint8), "sheep", REGIONS)
    assert result.segments == ()
    assert result.maps.presence.tolist() == [0]


@pytest.mark.parametrize("settings", [Settings(), REGIONS])
def test_every_name_of_the_vocabulary_is_told_from_the_empty_text(demo, settings):
    """A name that CLIP confuses with the empty text is seen on every empty ground."""
    names = demo.closed_vocabulary.names
    features = demo.clip.encode_texts([*names, ""])
    near = (features[:-1] @ features[-1]).tolist()
    assert max(near) < 0.5, names[near.index(max(near))]
    assert not demo.segment(SCENE, "rabbit", settings).segments


def test_a_query_of_several_parts_is_refused(demo):
    with pytest.raises(QueryError, match=r"takes no 'sheep\+fire engine'; .* --method auto takes such queries"):
        demo.check("bomb, sheep+fire engine", REGIONS)
    known, unknown = demo.known_queries("bomb, sheep+fire engine, sheep+unicycle", REGIONS)
    assert [query.name for query in known] == ["bomb"]
    assert unknown["sheep+fire engine"] == "region classification takes no 'sheep+fire engine'; ask for its parts."
    assert "does not know 'unicycle'" in unknown["sheep+unicycle"]


def test_the_command_line_leaves_out_a_query_of_several_parts(tmp_path, capsys):
    command = ["segment", str(SCENE), "--method", "regions", "--save", "none", "--model", "demo", "--output"]
    assert main([*command, str(tmp_path / "out"), "--query", "sheep, fire engine+bomb"]) == 3
    assert "left out: region classification takes no 'fire engine+bomb'; ask for its parts." in capsys.readouterr().err
    assert [each["name"] for each in read_dataset(tmp_path / "out" / "dataset.json")["categories"]] == ["sheep"]
    assert main([*command, str(tmp_path / "none"), "--query", "fire engine+bomb"]) == 1
    assert "--method auto takes such queries" in capsys.readouterr().err


def test_a_negative_takes_the_regions_that_show_it(demo, session):
    session.segment("sheep", REGIONS)
    features = next(iter(session.regions.values())).features
    bus, engine = demo.clip.evidence(features, parse_queries("bus, fire engine")).T
    (without,) = demo.clip.evidence(features, parse_queries("bus -fire engine")).T
    assert (engine > bus).any()
    np.testing.assert_array_equal(without, np.where(engine > bus, -MOST_EVIDENCE, bus))


def test_the_presence_in_a_mask_joins_its_score_and_drops_segments_below_a_share_of_the_threshold(demo, monkeypatch):
    words = ["sheep", "fire engine"]
    monkeypatch.setattr(regions, "LEAST_SHARE", 0)
    kept = demo.open(SCENE).segment(words)
    features = patch_features(demo.encode([demo.open(SCENE)], MapSettings())[0], (each.mask for each in kept.segments))
    evidence = demo.clip.evidence(features, parse_queries(words))
    shown = demo.card.region_classification.presence_of(
        np.array([evidence[row, words.index(each.query)] for row, each in enumerate(kept.segments)])
    )
    assert [each.region_presence for each in kept.segments] == pytest.approx(shown, abs=1e-3)
    for each in kept.segments:
        assert each.mean_presence == pytest.approx((each.presence + each.region_presence) / 2)
        assert segment_score(each, kept) == pytest.approx(each.sam_score * each.mean_presence)
        assert attributes_for(each, 0.5)["region_presence"] == pytest.approx(each.region_presence, abs=1e-6)
    means = sorted(each.mean_presence for each in kept.segments)
    assert means[0] < means[-1]
    threshold = kept.thresholds[0]
    for least in (means[0] / 2, (means[0] + means[-1]) / 2, 1.1):
        monkeypatch.setattr(regions, "LEAST_SHARE", least / threshold)
        found = demo.open(SCENE).segment(words)
        stay = [each for each in kept.segments if each.mean_presence >= least]
        assert [each.query for each in found.segments] == [each.query for each in stay]
        for one, other in zip(found.segments, stay, strict=True):
            assert_same_masks(one.mask, other.mask)
    assert not found.segments
    assert found.maps.presence == pytest.approx(kept.maps.presence, rel=1e-4)  # of the image as a whole


@pytest.mark.parametrize(
    "settings",
    [
        Settings(presence=PresenceSettings(0)),
        Settings(points=PointSettings(method="reference")),
        Settings(maps=MapSettings(input_size=320)),
    ],
)
def test_nothing_is_dropped_where_the_card_says_nothing_or_the_user_wants_all(demo, settings, monkeypatch):
    words = ["sheep", "fire engine"]
    monkeypatch.setattr(regions, "LEAST_SHARE", 10)
    segments = demo.segment(SCENE, words, settings).segments
    assert segments
    assert all(each.region_presence is None for each in segments)


def test_features_that_a_clip_lacks_are_an_error_before_any_image_is_read(demo):
    other = demo.with_card(demo.card)
    other.clip.image_network = lambda pixels, rule: pixels  # as ONNX Runtime would
    with pytest.raises(SettingsError, match="run with torch only"):
        other.check("sheep", replace(REGIONS, maps=MapSettings(region_features="values")))
    assert RegionClassifier.of(other.clip, other.sam, NO_CARD, REGIONS).fitted.features == "patches"
    assert RegionClassifier.of(demo.clip, demo.sam, NO_CARD, REGIONS).fitted.features == "values"


def test_features_of_a_card_that_a_clip_lacks_are_an_error_before_any_image_is_read(demo):
    values = RegionClassification(features="values", slope=1.0, offset=0.0, threshold=0.5)
    other = demo.with_card(demo.card.model_copy(update={"region_classification": values}))
    assert [query.name for query in other.known_queries("sheep", REGIONS)[0]] == ["sheep"]
    other.clip.image_network = lambda pixels, rule: pixels
    for ask in (other.check, other.known_queries):
        with pytest.raises(SettingsError, match="run with torch only"):
            ask("sheep", REGIONS)


@pytest.mark.parametrize("features", ["patches", "values"])
def test_one_mask_of_the_size_of_the_image_is_in_memory_at_a_time(demo, monkeypatch, features):
    """A mask of a photograph takes 12 MB, and an image has dozens of regions."""
    made, alive = [], []
    in_image = Region.in_image

    def counted(region, hw):
        alive.append(sum(mask() is not None for mask in made))
        mask = in_image(region, hw)
        made.append(weakref.ref(mask))
        return mask

    monkeypatch.setattr(Region, "in_image", counted)
    classifier = RegionClassifier(demo.clip, demo.sam, RegionClassification(features=features), MaskSettings())
    session = demo.open(SCENE)
    (tokens,), (embedding,) = demo.clip.encode_images([session.image]), demo.sam.embed([session.image])
    found = classifier.found(embedding, session, tokens)
    assert len(made) == 2 * len(found.regions) > 4
    assert max(alive) <= 1


def test_the_bytes_of_a_session_with_regions_are_counted_by_device(demo):
    session = demo.open(SCENE)
    session.segment("sheep", REGIONS)
    (found,) = session.regions.values()
    masks = sum(region.mask.nbytes for region in found.regions)
    host = session.image.pixels.nbytes + masks + found.host_nbytes
    features = [*(each.features for each in session.tokens.values()), found.features, *session.embedding.tensors]
    assert session.nbytes_by_device() == {"cpu": host + sum(each.nbytes for each in features)}
    session.tokens = {}
    session.embedding = None
    session.regions["x"] = replace(found, features=found.features.to("meta"))
    sizes = session.nbytes_by_device()
    assert sizes["meta"] == found.features.nbytes
    assert sizes["cpu"] == session.nbytes - found.features.nbytes == host + found.host_nbytes + (found.features.nbytes)


def test_a_mask_of_a_region_can_be_replayed(demo):
    image = load_image(SCENE, file_name="images/scene_0019.jpg")
    content = build_dataset([demo.segment(image, "sheep, fire engine", REGIONS)], provenance=demo.provenance(REGIONS))
    again = replay(content, content["annotations"][0]["id"], images=SCENES.parent, models=demo)
    assert again.points_identical
    assert again.rebuilt_chosen == again.recorded_chosen
    assert_same_masks(again.rebuilt, again.recorded)


def test_points_are_left_out_where_the_grid_says_so(demo, session):
    embedding = demo.sam.embed([session.image])[0]
    where = np.zeros((2, 3), np.bool_)
    where[1, 2] = True
    height, width = session.image.hw
    chosen = automatic_regions(demo.sam, lambda _: embedding, session.image.hw, GRID, where=where)
    everywhere = automatic_regions(
        demo.sam, lambda _: embedding, session.image.hw, GRID, where=np.ones((2, 3), np.bool_)
    )
    assert len(everywhere) == len(automatic_regions(demo.sam, lambda _: embedding, session.image.hw, GRID))
    for x, y in (region.point.xy[0] for region in chosen):
        assert x >= width * 2 / 3
        assert y >= height / 2
    inside = (grid(GRID.points_per_side) >= (2 / 3, 0.5)).all(1).sum()
    assert 0 < len(chosen) <= 3 * inside


# --- a thing, its parts, and what is left ----------------------------------------------------------------------------


def classifier(choice=None, **masks):
    return RegionClassifier(None, None, RegionClassification(choice=choice), MaskSettings(**masks))


def found(areas, shared):
    """Regions with these areas that share these pixels."""
    intersections = np.diag(np.array(areas, np.float32))
    for (i, j), pixels in shared.items():
        intersections[i, j] = intersections[j, i] = pixels
    return FoundRegions(
        tuple(areas), torch.zeros(len(areas), 1), np.zeros((len(areas), 1, 1), np.float32), intersections
    )


@pytest.mark.parametrize(
    ("qualities", "kept"),
    [((0.9, 0.7, 0.6, 0.8), [0, 3]), ((0.6, 0.9, 0.8, 0.7), [1, 2, 3])],
    ids=["the whole is better", "the parts are better"],
)
def test_a_thing_or_its_parts_stay_but_not_both(qualities, kept):
    """The first region holds the second and third; the last is elsewhere."""
    of_image = found([100, 50, 40, 90], {(0, 1): 50, (0, 2): 40})
    assert classifier()._best(of_image, np.arange(4), np.array(qualities, np.float32)) == kept


def test_a_region_of_low_quality_stays_only_if_it_is_the_best():
    of_image, qualities = found([10, 10], {}), np.array([0.2, 0.1], np.float32)
    choice = RegionChoice(sam=1, separation=0, evidence=0, constant=0, quality=0.5)
    assert classifier(choice)._best(of_image, np.arange(2), qualities) == [0]
    assert classifier(choice, quality=0.05)._best(of_image, np.arange(2), qualities) == [0, 1]
    assert classifier()._best(of_image, np.arange(2), qualities) == [0]  # half as good as the best


def test_quality_is_the_expected_iou_or_without_a_card_a_product(demo, session):
    session.segment("sheep", REGIONS)
    of_image = next(iter(session.regions.values()))
    count = len(of_image.regions)
    scores = np.random.default_rng(0).random(of_image.shares.shape[1:]).astype(np.float32)
    evidence = np.linspace(-2, 3, count).astype(np.float32)
    share = of_image.shares.reshape(count, -1).astype(np.float64)
    flat = scores.ravel().astype(np.float64)
    apart = share @ flat / share.sum(1) - (1 - share) @ flat / (1 - share).sum(1)
    predicted = np.array([region.predicted_iou for region in of_image.regions])
    choice = RegionChoice(sam=0.5, separation=0.25, evidence=0.125, constant=-0.1, quality=0.5)
    fitted = quality(of_image, scores, evidence, RegionClassification(choice=choice))
    np.testing.assert_allclose(fitted, 0.5 * predicted + 0.25 * apart + 0.125 * evidence - 0.1, atol=1e-5)
    plain = quality(of_image, scores, evidence, RegionClassification())
    np.testing.assert_allclose(plain, predicted * apart.clip(min=0) / (1 + np.exp(-evidence)), atol=1e-5)


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_line_classifies_regions_and_records_it(tmp_path, capsys):
    PilImage.open(SCENE).save(tmp_path / "scene.png")
    command = ["segment", str(tmp_path / "scene.png"), "--query", "sheep", "--query", "koala", "--model", "demo"]
    assert main([*command, "--method", "regions", "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "sheep: 2 found" in said
    assert "koala: not found (0." in said
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())["info"]
    assert '"method": "regions"' in json.dumps(info)


# --- attention within regions -----------------------------------------------------------------------------------------

CORRCLIP = Settings(MapSettings(architecture="corrclip-sam"))


def region_of(mask):
    """A region with this mask bool[H, W], as SAM gives them."""
    x, y, width, height = tight_box(mask)
    return Region(mask[y : y + height, x : x + width], (x, y, width, height), None, 0, 0.9, 0.9)


def test_a_pixel_belongs_to_the_smallest_region_that_holds_it():
    masks = masks_of(HW)
    found = owners([region_of(mask) for mask in masks], HW)
    for row, column in np.ndindex(*HW):
        holding = [number for number, mask in enumerate(masks) if mask[row, column]]
        assert found[row, column] == min(holding, key=lambda number: masks[number].sum(), default=-1)
    assert set(found.ravel().tolist()) == {-1, 0, 1, 2}
    assert (owners([], HW) == -1).all()


def test_features_of_sam_lie_on_the_grid_of_clip(demo, session):
    (embedding,) = demo.sam.embed([session.image])
    rows, columns = demo.sam.filled(embedding, embedding.features.shape[-1])
    assert columns < rows == embedding.features.shape[-1]  # the image is tall, and the frame square
    expected = resize(embedding.features[:, :rows, :columns].numpy(), (5, 9)).reshape(-1, 45).T
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert_close(demo.sam.grid_features(embedding, (5, 9)), expected, terms=16)


def test_features_of_a_sam_that_stretches_images_cover_its_whole_frame(session):
    sam = Sam2.from_weights(
        random_weights(small_config()), device=CPU, precision="fp32", config=small_config().to_dict()
    )
    (embedding,) = sam.embed([session.image])
    expected = resize(embedding.features.numpy(), (5, 9)).reshape(-1, 45).T
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert_close(sam.grid_features(embedding, (5, 9)), expected, terms=16)


def test_without_any_region_every_patch_attends_to_what_is_similar(demo):
    blank = Image(np.full((40, 72, 3), 127, np.uint8))
    session = demo.open(blank)
    session.automatic = ()
    assert (demo.owners(session) == -1).all()
    assert np.isfinite(session.segment(["sheep"], CORRCLIP).maps.scores).all()


def test_patches_attend_within_the_regions_that_sam_cuts_out(demo):
    """The maps are those of the steps one by one."""
    session = demo.open(SCENE)
    found = session.segment(["sheep"], CORRCLIP).maps.scores
    (embedding,) = demo.sam.embed([session.image])
    regions = automatic_regions(demo.sam, lambda _: embedding, session.image.hw, GRID)
    side = demo.clip.input_hw(demo.input_size)[0] // demo.clip.stride
    owner = owners_of_patches(owners(regions, session.image.hw), (side, side))
    assert len(np.unique(owner)) > 2
    weights = attention_weights(owner, demo.sam.grid_features(embedding, (side, side)), 4.0)
    (tokens,) = demo.clip.encode_images(
        [session.image], size=demo.input_size, architecture="corrclip-sam", weights=[weights]
    )
    assert_close(found, demo.clip.scores(tokens, ["sheep"], MapSettings()), terms=DEMO_NETWORK, scale=1)


def test_one_set_of_regions_serves_all_words_rules_and_methods(demo, monkeypatch):
    made = []
    monkeypatch.setattr(
        "text2seg.regions.automatic_regions",
        lambda *given, **named: made.append(1) or automatic_regions(*given, **named),
    )
    session = demo.open(SCENE)
    before = session.nbytes
    for rule in ("corrclip", "corrclip-sam"):
        for words in ("sheep", "fire engine"):
            session.segment(words, Settings(MapSettings(architecture=rule)))
    demo.owners(session)
    session.segment("sheep", Settings(MapSettings(architecture="corrclip"), PointSettings(method="regions")))
    assert len(made) == 1
    masks = sum(region.mask.nbytes for region in session.automatic)
    tokens = sum(each.features.nbytes for each in session.tokens.values())
    (found,) = session.regions.values()
    assert session.nbytes - before == masks + tokens + found.host_nbytes + found.features.nbytes + sum(
        each.nbytes for each in session.embedding.tensors
    )


def test_attention_within_regions_works_in_batches_and_tiles_and_is_not_calibrated(demo, session):
    other = SCENES / "scene_0003.jpg"
    alone = [demo.segment(each, ["sheep", "rocket"], CORRCLIP) for each in (SCENE, other)]
    together = demo.segment_many([SCENE, other], ["sheep", "rocket"], CORRCLIP)
    for one, many in zip(alone, together, strict=True):
        assert_close(one.maps.scores, many.maps.scores, terms=DEMO_NETWORK, scale=1)
        assert not one.maps.calibrated
    tiled = session.segment("sheep", replace(CORRCLIP, tiles=TileSettings(tile=160)))
    assert tiled.segments


def test_without_regions_the_error_says_the_way_out(demo, tmp_path):
    alone = Text2Seg(demo.clip, sam=None)
    for attempt in (
        lambda: alone.check(["sheep"], CORRCLIP),
        lambda: demo.clip.encode_images([load_image(SCENE)], architecture="corrclip"),
        lambda: demo.clip.check("corrclip"),
    ):
        with pytest.raises(
            SettingsError, match=r"SAM cuts out, and here CLIP works alone: choose another rule \(surgery"
        ):
            attempt()
    with pytest.raises(SettingsError, match="load a SAM too"):
        alone.owners(alone.open(SCENE))
    models = copy.copy(demo)
    models.clip = copy.copy(demo.clip)
    models.clip.image_network = lambda pixels, architecture: None  # as ONNX Runtime replaces it
    with pytest.raises(SettingsError, match="runs with torch only; leave --runtime out"):
        models.check(["sheep"], CORRCLIP)


@pytest.mark.parametrize(
    "command",
    [
        ["export", "onnx", "--output", "graphs"],
        ["label", SCENES, "--query", "sheep", "--only-if-present"],
    ],
    ids=lambda command: command[0],
)
def test_commands_of_clip_alone_refuse_attention_within_regions(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    assert main([*map(str, command), "--model", "demo", "--architecture", "corrclip"]) == 2
    assert "choose another rule" in " ".join(capsys.readouterr().err.split())


def test_the_command_line_takes_attention_within_regions_and_records_it(tmp_path):
    given = ["segment", str(SCENE), "--query", "sheep", "--model", "demo", "--architecture", "corrclip"]
    assert main([*given, "--output", str(tmp_path)]) == 0
    info = json.loads((tmp_path / "dataset.json").read_text())["info"]
    assert '"architecture": "corrclip"' in json.dumps(info)
