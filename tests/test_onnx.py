"""ONNX graphs of the demo model equal torch in every call and mask, and unfitting graphs are refused."""

from __future__ import annotations

import copy
import json
import shlex
import shutil
import sys
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from closeness import DEMO_NETWORK, assert_close, rounding
from triton_builders import check_against_graph, parse

from text2seg import MapSettings, Settings, Text2Seg
from text2seg.cli import main
from text2seg.cli.export import _show as show_export
from text2seg.coco.dataset import build_dataset, write_dataset
from text2seg.coco.rle import mask_of
from text2seg.config import ModelSettings
from text2seg.errors import CheckpointError, OutputError, SettingsError
from text2seg.io.images import load_image
from text2seg.onnx.graphs import agreement, convert, save
from text2seg.onnx.networks import GRAPHS, Graph, engines_of, read_manifest
from text2seg.onnx.triton import write_repository
from text2seg.onnx_export import SCENES, Plan, _check_output, bundled_scenes, export
from text2seg.records import PointPrompts
from text2seg.review.replay import replay
from text2seg.sam.decoder import FILLING, NOT_A_POINT

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scenes():
    return bundled_scenes(2)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, scenes):
    """One export to int8, which draws in fp32 first: both folders, and what was measured of them."""
    base = tmp_path_factory.mktemp("graphs")
    steps = []
    for step in export(Plan(base / "int8", precision="int8", rounds=0), scenes[:1]):
        steps.append(step)
        if step.precision == "fp32":
            shutil.copytree(step.folder, base / "fp32")
    return base, steps


@pytest.fixture(scope="module")
def full(exported):
    """The demo model in ONNX Runtime, float32."""
    return Text2Seg.load("demo", device="cpu", graphs=exported[0] / "fp32")


@pytest.fixture
def spoilt(exported, tmp_path):
    """A copy of the graphs to damage."""
    return shutil.copytree(exported[0] / "fp32", tmp_path / "graphs")


def test_each_graph_equals_torch_within_its_tolerance_and_int8_is_worse_than_fp32(exported):
    base, (fp32, int8) = exported
    assert [each.name for each in fp32.graphs] == list(GRAPHS)
    assert all(each.error < rounding(DEMO_NETWORK) for each in fp32.graphs)
    errors = {each.name: each.error for each in int8.graphs}
    assert all(1e-3 < errors[name] < 0.1 for name in ("sam_encoder", "clip_text"))
    assert max(errors["clip_image"], errors["sam_decoder"]) < rounding(DEMO_NETWORK)
    assert min(fp32.masks.ious) > 0.999
    assert np.mean(int8.masks.ious) > 0.9
    sizes = {step.precision: {each.name: each.bytes for each in step.graphs} for step in (fp32, int8)}
    assert sizes["int8"]["sam_encoder"] < 0.6 * sizes["fp32"]["sam_encoder"]
    assert not [path for path in base.iterdir() if path.name.startswith(".")]


def test_the_pipeline_gives_the_same_points_and_masks(demo, full, scenes):
    for scene in scenes:
        wanted, found = (models.segment(scene.image, scene.queries) for models in (demo, full))
        assert [each.query for each in found.segments] == [each.query for each in wanted.segments]
        for ours, theirs in zip(found.segments, wanted.segments, strict=True):
            np.testing.assert_allclose(ours.points.xy, theirs.points.xy, atol=1e-3)
            np.testing.assert_allclose(ours.sam_score, theirs.sam_score, atol=1e-3)
        assert min(agreement([wanted], [found]).ious) > 0.999


def test_no_network_of_torch_is_called(full, scenes, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("torch was asked")

    for module in (full.clip.model.visual, full.clip.model.transformer, full.sam.module.mask_decoder.transformer):
        for part in module.modules():
            monkeypatch.setattr(part, "forward", refuse)
    full.clip.text.forget()
    assert full.segment(scenes[0].image, scenes[0].queries).segments
    assert all(parameter.is_meta for parameter in full.sam.module.image_encoder.parameters())


@pytest.mark.parametrize(("images", "sets", "points"), [(1, 1, 2), (1, 4, 7), (3, 5, 1)])
def test_the_decoder_takes_any_number_of_images_sets_and_points(demo, full, images, sets, points):
    generator = torch.Generator().manual_seed(points)
    module = demo.sam.module
    rows, columns = module.prompt_encoder.image_embedding_size
    embeddings = torch.randn(images, 128, rows, columns, generator=generator)
    labels = torch.randint(0, 2, (sets, points), generator=generator)
    labels[:, 0] = NOT_A_POINT
    labels[::2, 1:] = FILLING
    given = (
        embeddings,
        torch.arange(sets) % images,
        module.image_encoder.img_size * torch.rand(sets, points, 2, generator=generator),
        labels,
    )
    for masks in (None, torch.randn(sets, 1, 4 * rows, 4 * columns, generator=generator)):
        with torch.inference_mode():
            wanted = demo.sam.decoder_network(*given, masks)
        for ours, theirs in zip(full.sam.decoder_network(*given, masks), wanted, strict=True):
            assert_close(ours, theirs, terms=DEMO_NETWORK)


def test_segment_points_works_with_graphs(demo, full, scenes):
    points = PointPrompts(np.array([[100, 90]], np.float32), np.array([1], np.int8), np.ones(1, np.float32))
    wanted, found = (m.open(scenes[0].image).segment_points(scenes[0].queries[0], points) for m in (demo, full))
    assert (wanted.mask == found.mask).mean() > 0.999


def test_a_half_precision_graph_is_close_to_torch(demo, exported, scenes, tmp_path):
    convert(exported[0] / "fp32" / "clip_text.onnx", tmp_path / "clip_text.onnx", "fp16")
    graph = Graph(tmp_path / "clip_text.onnx", CPU)
    tokens = torch.tensor([[49406, 320, 3638, 49407], [49406, 3638, 49407, 0]])
    with torch.inference_mode():
        wanted = demo.clip.text.network(tokens)
    error = float((graph(tokens)[0] - wanted).abs().max() / wanted.abs().max())
    assert 1e-6 < error < 3e-2
    source = exported[0] / "fp32" / "clip_text.onnx"
    assert (tmp_path / "clip_text.onnx").stat().st_size < 0.6 * source.stat().st_size


def test_large_weights_are_stored_beside_their_graph_in_every_precision(exported, tmp_path, monkeypatch):
    import onnx

    monkeypatch.setattr("text2seg.onnx.graphs.LARGEST_FILE", 1000)
    source, tokens = exported[0] / "fp32" / "clip_text.onnx", torch.tensor([[49406, 320, 3638, 49407]])
    wanted = Graph(source, CPU)(tokens)[0]
    save(onnx.load(str(source)), tmp_path / "fp32.onnx")
    for precision, allowed in (("fp32", 0.0), ("fp16", 1e-3), ("int8", 1e-2)):
        path = tmp_path / f"{precision}.onnx"
        if precision != "fp32":
            convert(tmp_path / "fp32.onnx", path, precision)
        assert path.with_name(f"{path.name}.data").stat().st_size > 10 * path.stat().st_size
        assert float((Graph(path, CPU)(tokens)[0] - wanted).abs().max()) <= allowed


def test_provenance_records_runtime_precision_and_graphs(demo, full, exported):
    origin = json.loads(json.dumps(full.provenance()))
    assert (origin["runtime"], origin["precision"], demo.provenance()["runtime"]) == ("onnx", "fp32", "torch")
    assert origin["clip"] == demo.provenance()["clip"]
    assert len(origin["graphs"]["sam_encoder.onnx"]) == 64
    eight = Text2Seg.load("demo", device="cpu", graphs=exported[0] / "int8").provenance()
    assert eight["precision"] == "int8"
    assert eight["graphs"] != origin["graphs"]


def test_segment_and_label_run_from_the_command_line(exported, tmp_path, scenes, capsys):
    image = str(scenes[0].image.file_name)
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(SCENES / "images" / image.split("/")[-1], folder)
    flags = ["--query", scenes[0].queries[0], "--runtime", "onnx", "--graphs", str(exported[0] / "fp32")]
    assert main(["segment", str(next(folder.iterdir())), *flags, "--output", str(tmp_path / "out")]) == 0
    assert main(["label", str(folder), *flags, "--output", str(tmp_path / "labels.json")]) == 0, capsys.readouterr().err
    for path in (tmp_path / "out" / "dataset.json", tmp_path / "labels.json"):
        dataset = json.loads(path.read_text())
        origins = [
            dataset["info"].get("provenance"),
            *(a["attributes"].get("provenance") for a in dataset["annotations"]),
        ]
        assert dataset["annotations"]
        assert any(origin and origin["runtime"] == "onnx" for origin in origins)


def test_an_input_size_or_rule_that_was_not_exported_is_refused(full, scenes):
    for maps, says in (
        (MapSettings(input_size=256), "384×384 pixels, not 256×256: use --input-size 384 384"),
        (MapSettings(architecture="naclip"), "for --architecture surgery, not naclip"),
    ):
        with pytest.raises(SettingsError, match=says):
            full.segment(scenes[0].image, scenes[0].queries, Settings(maps=maps))


def load(folder, **given):
    return Text2Seg.load("demo", device="cpu", graphs=folder, **given)


def test_folders_without_graphs_are_refused(spoilt, tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder; make one with: text2seg export onnx"):
        load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no graphs\.json"):
        load(tmp_path)
    (spoilt / "sam_decoder.onnx").unlink()
    with pytest.raises(CheckpointError, match=r"sam_decoder\.onnx is missing"):
        load(spoilt)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["clip"].update(sha256="ab" * 32), "are of the CLIP 'demo' with sha256 abab"),
        (lambda m: m["sam"].update(sha256="ab" * 32), "are of the SAM 'demo'"),
        (lambda m: m.update(format=99), "has format 99, but this text2seg reads format 1"),
        (lambda m: m.update(precision="int4"), "cannot be read .*int4"),
        (lambda m: m.pop("opset"), "cannot be read"),
        (lambda m: m["graphs"].pop(), "lacks the graphs sam_decoder_masked"),
        (lambda m: m["files"].update({"../x.onnx": "0"}), "outside the folder"),
        (lambda m: m["graphs"][0].update(file="*"), "outside the folder"),
        (lambda m: m["graphs"].append({**m["graphs"][0], "name": "../../x"}), r"has a graph '\.\./\.\./x'"),
    ],
)
def test_graphs_of_another_model_or_version_are_refused(spoilt, change, says):
    content = json.loads((spoilt / "graphs.json").read_text())
    change(content)
    (spoilt / "graphs.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=says):
        load(spoilt)


def test_a_damaged_graph_is_refused(spoilt):
    path = spoilt / "clip_text.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is not the file that was exported"):
        load(spoilt)
    with pytest.raises(CheckpointError, match="cannot be run"):
        Graph(path, CPU)


def test_settings_that_contradict_the_graphs_are_refused(exported):
    with pytest.raises(SettingsError, match="are in fp32, not bf16"):
        load(exported[0] / "fp32", precision="bf16")
    with pytest.raises(SettingsError, match="leave --compile out"):
        load(exported[0] / "fp32", compile=True)
    with pytest.raises(SettingsError, match="needs --graphs"):
        ModelSettings(runtime="onnx")
    with pytest.raises(SettingsError, match="is for --runtime onnx"):
        ModelSettings(graphs=exported[0])


def test_without_onnxruntime_the_error_says_what_to_install(exported, monkeypatch, tmp_path, scenes):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SettingsError, match=r'pip install "text2seg\[onnx\]"'):
        load(exported[0] / "fp32")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r'needs onnx, onnxscript, onnxruntime.*pip install "text2seg\[onnx\]"'):
        next(export(Plan(tmp_path / "graphs"), scenes))


class FakeRuntime:
    """ONNX Runtime of a machine with an NVIDIA GPU; it records the providers of its sessions."""

    def __init__(self, providers, started=None):
        self.providers, self.started, self.asked = providers, started or providers, []

    def get_available_providers(self):
        return self.providers

    def SessionOptions(self):
        return SimpleNamespace()

    def InferenceSession(self, path, options, providers):
        self.asked.append(providers)
        return SimpleNamespace(get_providers=lambda: self.started, get_inputs=list, get_outputs=list)


CPU_PROVIDER, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


def test_a_session_gets_the_chosen_provider_and_its_options(monkeypatch, tmp_path):
    runtime = FakeRuntime([TENSORRT, CUDA, CPU_PROVIDER])
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    second = torch.device("cuda", 1)
    for device, provider in ((CPU, "auto"), (second, "auto"), (second, "cpu"), (CPU, "cuda")):
        Graph(tmp_path / "x.onnx", device, provider)
    on_first, on_second = (CUDA, {"device_id": 0}), (CUDA, {"device_id": 1})
    assert runtime.asked == [[CPU_PROVIDER], [on_second, CPU_PROVIDER], [CPU_PROVIDER], [on_first, CPU_PROVIDER]]
    for provider, half in (("tensorrt", False), ("tensorrt-fp16", True)):
        engines = engines_of(tmp_path / "graphs", "ab" * 32, provider)
        assert engines == tmp_path.resolve() / "graphs-tensorrt" / ("ab" * 8 + ("-fp16" if half else ""))
        Graph(tmp_path / "x.onnx", second, provider, engines)
        options = {
            "device_id": 1,
            "trt_fp16_enable": half,
            "trt_engine_cache_enable": True,
            "trt_engine_cache_path": str(engines),
        }
        assert runtime.asked[-1] == [(TENSORRT, options), on_second, CPU_PROVIDER]
    assert engines_of(tmp_path, "ab" * 32, "cuda") is None


def test_a_provider_that_does_not_start_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", FakeRuntime([TENSORRT, CUDA, CPU_PROVIDER], [CUDA, CPU_PROVIDER]))
    with pytest.raises(SettingsError, match=r"has TensorrtExecutionProvider, but cannot start it.*gpu tensorrt"):
        Graph(tmp_path / "x.onnx", CPU, "tensorrt")


def test_a_provider_that_is_not_installed_is_refused(exported, monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CPU_PROVIDER])
    for provider, package in (("cuda", "onnxruntime-gpu"), ("tensorrt-fp16", "onnxruntime-gpu tensorrt")):
        says = rf"--onnx-provider {provider}: the installed ONNX Runtime has no .*pip install {package}\)"
        with pytest.raises(SettingsError, match=says):
            load(exported[0] / "fp32", onnx_provider=provider)
    with pytest.raises(SettingsError, match="--onnx-provider is for --runtime onnx"):
        ModelSettings(onnx_provider="cpu")
    with pytest.raises(SettingsError, match="give their folder too"):
        Text2Seg.load("demo", onnx_provider="cpu")


def test_a_chosen_provider_is_recorded(exported, full, scenes):
    models = load(exported[0] / "fp32", onnx_provider="cpu")
    assert models.provenance() == full.provenance() | {"onnx_provider": "cpu"}
    wanted, found = (each.segment(scenes[0].image, scenes[0].queries) for each in (full, models))
    assert min(agreement([wanted], [found]).ious) > 0.999


def test_a_folder_without_graphs_is_not_overwritten(tmp_path, scenes):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").touch()
    with pytest.raises(OutputError, match="exists already and is not a folder of graphs"):
        next(export(Plan(tmp_path / "photos"), scenes))


def test_an_earlier_export_is_replaced_only_to_overwrite(exported, scenes):
    with pytest.raises(OutputError, match="add --overwrite to replace it"):
        next(export(Plan(exported[0] / "int8"), scenes))
    _check_output(Plan(exported[0] / "int8", overwrite=True))


def test_the_manifest_describes_the_files(exported):
    import onnx

    manifest = read_manifest(exported[0] / "int8")
    assert (manifest.precision, manifest.input_hw, manifest.architecture) == ("int8", (384, 384), "surgery")
    for graph in manifest.graphs:
        model = onnx.load(str(exported[0] / "int8" / graph.file))
        onnx.checker.check_model(model)
        assert [each.name for each in model.graph.input] == [each.name for each in graph.inputs]
        assert {each.domain: each.version for each in model.opset_import}[""] == manifest.opset
        assert graph.error <= graph.tolerance
    assert manifest.graph("sam_encoder").precision == "int8"
    assert manifest.graph("clip_image").precision == "fp32"


def test_the_triton_repository_fits_the_schema_and_the_graphs(exported, tmp_path):
    folders = write_repository(exported[0] / "int8", tmp_path)
    assert [folder.name for folder in folders] == list(GRAPHS)
    for folder in folders:
        check_against_graph(folder)
    batches = {folder.name: parse(folder / "config.pbtxt").max_batch_size for folder in folders}
    assert batches == {"clip_image": 8, "clip_text": 128, "sam_encoder": 8, "sam_decoder": 0, "sam_decoder_masked": 0}


@pytest.fixture(scope="module")
def labelled(full, scenes):
    """What a job writes of one thing in a scene in ONNX Runtime, through JSON and back. It is one, because its mask is
    made again alone, and bytes are the same only where nothing else is in the batch."""
    every = (full.segment(scenes[0].image, [query]) for query in scenes[0].queries)
    result = next(each for each in every if len(each.segments) == 1)
    return json.loads(json.dumps(build_dataset([result], provenance=full.provenance())))


def test_a_mask_from_graphs_is_replayed_with_the_same_graphs(labelled, exported, full, tmp_path, capsys):
    assert labelled["annotations"]
    for annotation in labelled["annotations"]:
        again = replay(labelled, annotation["id"], images=SCENES / "images", device="cpu", graphs=exported[0] / "fp32")
        assert again.identical
        assert replay(labelled, annotation["id"], images=SCENES / "images", models=full).identical
    command = ["replay", str(write_dataset(labelled, tmp_path / "d.json")), "--annotation", "1"]
    command += ["--images", str(SCENES / "images"), "--device", "cpu"]
    assert main([*command, "--graphs", str(exported[0] / "fp32")]) == 0
    assert "mask: identical" in capsys.readouterr().out
    assert main(command) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.endswith("was made with ONNX graphs; name their folder with --graphs FOLDER")


def test_replay_with_other_graphs_or_without_graphs_is_refused(labelled, exported, demo, spoilt):
    def again(dataset, **given):
        return replay(dataset, 1, images=SCENES / "images", device="cpu", **given)

    with pytest.raises(CheckpointError, match=r"made with other ONNX graphs than those in .*int8; find those"):
        again(labelled, graphs=exported[0] / "int8")
    with pytest.raises(CheckpointError, match="from different ONNX graphs; find those"):
        again(labelled, models=demo)
    (spoilt / "sam_decoder.onnx").write_bytes(b"another")
    with pytest.raises(CheckpointError, match="is not the file that was exported"):
        again(labelled, graphs=spoilt)
    by_torch = copy.deepcopy(labelled)
    by_torch["annotations"][0]["attributes"]["provenance"] = demo.provenance() | {"settings": asdict(demo.settings)}
    with pytest.raises(SettingsError, match="was not made with ONNX graphs; leave out --graphs"):
        again(by_torch, graphs=exported[0] / "fp32")


def test_commands_copied_from_the_app_give_the_masks_of_its_graphs(exported, full, tmp_path, monkeypatch):
    from text2seg.app.model_pool import ModelPool
    from text2seg.app.segment.export import as_command, as_python
    from text2seg.app.segment.session import find, open_image
    from text2seg.app.settings import AppSettings

    monkeypatch.chdir(tmp_path)
    shutil.copy(SCENES / "images" / "scene_0019.jpg", tmp_path)
    for precision in ("fp32", "int8"):
        models = full if precision == "fp32" else load(exported[0] / precision)
        model_pool = ModelPool(models, AppSettings())
        session = open_image(model_pool, load_image("scene_0019.jpg"))
        session = find(session, model_pool, ("sheep",), threshold=0.7, presence=None)
        wanted = [piece.segment.mask for piece in session.document.pieces]
        program, *words = shlex.split(as_command(session))
        assert (program, words[words.index("--runtime") + 1]) == ("text2seg", "onnx")
        assert main([*words, "--overwrite"]) == 0
        dataset = json.loads((tmp_path / "outputs" / "dataset.json").read_text())
        shutil.rmtree(tmp_path / "outputs")
        found = [mask_of(annotation, wanted[0].shape) for annotation in dataset["annotations"]]
        names: dict = {}
        exec(as_python(session), names)
        assert names["seg"].provenance()["graphs"] == models.provenance()["graphs"]
        assert len(wanted) == 2
        for of_app, of_command, of_python in zip(
            wanted, found, [segment.mask for segment in names["result"].segments], strict=True
        ):
            np.testing.assert_array_equal(of_command, of_app)
            np.testing.assert_array_equal(of_python, of_app)


def test_the_result_of_an_export_is_printed_without_escapes(exported, capsys):
    show_export(exported[1][0])
    said = capsys.readouterr().out
    assert "masks compared with torch: " in said
    assert "\\" not in said
