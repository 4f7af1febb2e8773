"""Published answers of weights: answers of the original packages agree, and those of wrong weights do not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_builders import Server, serving
from PIL import Image as PillowImage
from segment_anything import SamPredictor

from text2seg import known_answers, weights
from text2seg.cli import main
from text2seg.clip.build import openai_networks
from text2seg.errors import CheckpointError
from text2seg.known_answers import Case, Verdict, cases_of, verify_answers
from text2seg.weights import download as weights_download
from text2seg.weights.load import load_clip_weights, load_sam_weights

SCENE = Path("text2seg/demo/scenes/new-scenes/images/scene_0019.jpg")
TEXTS = ("a sheep", "a fire engine", "a koala")
BOX = (40.0, 30.0, 160.0, 200.0)


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(weights_download, "BACKOFF_SECONDS", (0, 0))
    monkeypatch.setenv("NO_PROXY", "*")
    with serving(SCENE.read_bytes()) as running:
        yield running


def case(server: Server, **values) -> Case:
    common = {
        "weights": "demo",
        "image": "scene.jpg",
        "url": server.url,
        "tolerance": 1e-3,
        "source": "original packages",
    }
    return Case(**(common | values))


def clip_case(server: Server, **values) -> Case:
    """A case whose answer is that of OpenAI's code."""
    import clip

    tensors = load_clip_weights(weights.path_of(weights.find("demo", "clip")))
    model = openai_networks().build_model(dict(tensors)).float().eval()
    image = clip.clip._transform(model.visual.input_resolution)(PillowImage.open(SCENE).convert("RGB"))
    with torch.no_grad():
        logits, _ = model(image[None], clip.tokenize(list(TEXTS)))
    answer = tuple(logits.softmax(-1)[0].tolist())
    return case(server, **({"kind": "clip", "measure": "probabilities", "texts": TEXTS, "answer": answer} | values))


def sam_cases(server: Server, sam) -> list[Case]:
    """Cases whose answers are those of Meta's code."""
    stock = SamPredictor(sam.module)
    stock.set_image(np.asarray(PillowImage.open(SCENE).convert("RGB")))
    asked = {"points": ((120.0, 100.0),)}, {"points": ((120.0, 100.0), (60.0, 90.0))}, {"box": BOX}
    found = []
    for question in asked:
        points = np.array(question.get("points", ()), np.float32).reshape(-1, 2)
        for single in (False, True):
            _, scores, _ = stock.predict(
                points if len(points) else None,
                np.ones(len(points), np.int64) if len(points) else None,
                np.array(question["box"]) if "box" in question else None,
                multimask_output=not single,
            )
            measure = "single mask" if single else "candidates"
            found.append(case(server, kind="sam", measure=measure, answer=tuple(scores.tolist()), **question))
    return found


def test_answers_of_the_original_clip_agree(server, tmp_path):
    (verdict,) = verify_answers([clip_case(server)], device="cpu", folder=tmp_path)
    assert verdict.agrees
    assert verdict.ours == pytest.approx(verdict.case.answer, abs=1e-3)


def test_answers_of_the_original_sam_agree_for_points_and_boxes(server, demo, tmp_path):
    verdicts = verify_answers(sam_cases(server, demo.sam), device="cpu", folder=tmp_path)
    assert [verdict.agrees for verdict in verdicts] == [True] * 6
    assert len(server.paths) == 1  # the image is downloaded once


def test_slightly_wrong_weights_do_not_agree(server, demo, tmp_path):
    tensors = load_clip_weights(weights.path_of(weights.find("demo", "clip")))
    wrong = {name: tensor.clone() for name, tensor in tensors.items()}
    wrong["visual.proj"] = wrong["visual.proj"].roll(1, 0)
    torch.save(wrong, tmp_path / "clip.pt")
    (verdict,) = verify_answers(
        [clip_case(server, weights=str(tmp_path / "clip.pt"))], device="cpu", folder=tmp_path / "images"
    )
    assert not verdict.agrees
    tensors = load_sam_weights(weights.path_of(weights.find("demo", "sam")), lambda stored: None)
    wrong = {name: tensor.clone() for name, tensor in tensors.items()}
    name = next(name for name in wrong if name.endswith("iou_prediction_head.layers.0.weight"))
    wrong[name] *= 1.1
    torch.save(wrong, tmp_path / "sam.pth")
    cases = [each.model_copy(update={"weights": str(tmp_path / "sam.pth")}) for each in sam_cases(server, demo.sam)]
    assert not all(verdict.agrees for verdict in verify_answers(cases, device="cpu", folder=tmp_path / "images"))


def test_numbers_that_are_not_published_are_not_compared(server):
    asked = case(server, kind="sam", measure="candidates", points=((1, 1),), answer=(None, None, 0.5))
    assert Verdict(asked, (0.9, 0.1, 0.5005)).agrees
    assert not Verdict(asked, (0.9, 0.1, 0.502)).agrees
    assert not Verdict(asked, (0.5,)).agrees


def test_the_command_prints_both_answers_and_fails_if_one_differs(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(known_answers, "cases_of", lambda name: (clip_case(server),))
    monkeypatch.setattr(weights, "folder", lambda: tmp_path)
    command = ["checkpoints", "verify", "RN50", "--answers", "--device", "cpu"]
    assert main(command) == 0
    assert "all answers agree" in capsys.readouterr().out
    monkeypatch.setattr(known_answers, "cases_of", lambda name: (clip_case(server, answer=(0.2, 0.3, 0.5)),))
    assert main(command) == 1
    text = capsys.readouterr().out
    assert "1 of 1 answers differ" in text
    assert "0.3000" in text


def test_of_a_pair_the_checkpoint_without_answers_is_left_out_and_said(server, tmp_path, monkeypatch, capsys):
    def cases(name):
        if name != "vit_b":
            raise CheckpointError(f"no answers of {name!r} are published")
        first = clip_case(server, source="original code, version one")
        return first, clip_case(server, source="a page about it")

    monkeypatch.setattr(known_answers, "cases_of", cases)
    monkeypatch.setattr(weights, "folder", lambda: tmp_path)
    monkeypatch.setenv("COLUMNS", "150")
    assert main(["checkpoints", "verify", "base", "--answers", "--device", "cpu"]) == 0
    text, errors = capsys.readouterr()
    assert "not compared: no answers of 'ViT-B/16' are published" in errors
    for source in ("original code, version one", "a page about it"):
        assert source in text
    assert main(["checkpoints", "verify", "huge", "--answers", "--device", "cpu"]) == 1
    assert "no answers of 'ViT-B/16' or 'vit_h' are published" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says", "status"),
    [
        (["--answers"], "name the checkpoint", 2),
        (["RN50", "--answers"], "no answers of 'RN50' are published; there are those of ViT-B/32, vit_b", 1),
        (["ViT-B/32", "--answers", "--device", "gpu"], "there is no device 'gpu'", 2),
        (["nothing", "--answers"], "there is no checkpoint 'nothing'", 2),
    ],
)
def test_what_cannot_be_compared_is_one_line(words, says, status, capsys):
    assert main(["checkpoints", "verify", *words]) == status
    assert says in capsys.readouterr().err


def test_without_a_connection_one_sentence_names_all_that_is_missing(monkeypatch, capsys):
    def unreachable(url):
        raise CheckpointError("cannot reach example.org: no network")

    monkeypatch.setattr("text2seg.weights.download.check_reachable", unreachable)
    assert main(["checkpoints", "verify", "base", "--answers", "--device", "cpu"]) == 1
    left_out, downloading, error = capsys.readouterr().err.splitlines()
    assert "no answers of 'ViT-B/16'" in left_out
    for name in ("sam_vit_b_01ec64.pth", *{case.image for case in cases_of("vit_b")}):
        assert name in downloading
        assert name in error
    assert f"weights in {weights.folder()} and images in {weights.folder() / 'answers'}" in error


def test_a_page_instead_of_the_image_is_refused_and_deleted(server, tmp_path):
    server.content = b"<html>please log in</html>"
    with pytest.raises(CheckpointError, match="did not send an image"):
        verify_answers([clip_case(server)], folder=tmp_path)
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock" and path.name != ".lock"] == []


def test_all_published_cases_are_of_known_weights_and_can_be_asked():
    names = {each.name: each.kind for each in weights.known()}
    every = json.loads(Path(known_answers.__file__).with_suffix(".json").read_text(encoding="utf-8"))
    for name in {entry["weights"] for entry in every}:
        for each in cases_of(name):
            assert names[each.weights] == each.kind
            assert bool(each.texts) == (each.kind == "clip") != bool(each.points or each.box)
            assert len(each.answer) == {"single mask": 1}.get(each.measure, len(each.texts) or 3)
            assert replace(Verdict(each, ()), ours=tuple(value or 0 for value in each.answer)).agrees
