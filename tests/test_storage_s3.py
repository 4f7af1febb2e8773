"""Jobs with a real S3 server on this machine: killed and resumed, and without permission to read or write."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import boto3
import httpx
import labelling_builders as jobs
import pytest
import s3fs
import torch
from moto.server import ThreadedMotoServer

from text2seg.cli import main
from text2seg.cli.terminal import PARTLY
from text2seg.coco.dataset import read_dataset
from text2seg.errors import ImageError, OutputError
from text2seg.io import storage
from text2seg.io.scan import list_images
from text2seg.io.storage import place_of
from text2seg.labelling.engine import LocalEngine
from text2seg.labelling.output import journal_path
from text2seg.ontology import read_ontology

ROOT = Path(__file__).parents[1]
SCENES = ROOT / "text2seg" / "demo" / "scenes" / "new-scenes"
PATIENCE = 300
MAY_ALL, MAY_READ = ["s3:*"], ["s3:GetObject", "s3:ListBucket"]


def forget() -> None:
    """Drop connections that were made with the environment of an earlier test."""
    storage._shared.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def server():
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def s3(server, tmp_path, monkeypatch):
    """Yield an empty server with one bucket, and set the environment variables of server and credentials."""
    httpx.post(f"{server}/moto-api/reset")
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "TEXT2SEG_STATE": str(tmp_path / "state"),
    }.items():
        monkeypatch.setenv(name, value)
    forget()
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    yield client
    forget()


def upload(s3, folder: Path, to: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            s3.put_object(Bucket="bucket", Key=f"{to}/{path.relative_to(folder).as_posix()}", Body=path.read_bytes())


def content(s3, key: str) -> bytes:
    return s3.get_object(Bucket="bucket", Key=key)["Body"].read()


def keys(s3) -> list[str]:
    return [each["Key"] for each in s3.list_objects_v2(Bucket="bucket").get("Contents", [])]


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    jobs.fill(tmp_path / "photos", 10)
    return tmp_path / "photos"


@pytest.fixture
def restricted(s3, server, monkeypatch):
    """Use credentials with these permissions only, which the server then checks."""

    def become(actions: list[str]) -> None:
        iam = boto3.client("iam")
        iam.create_user(UserName="worker")
        allowed = {"Effect": "Allow", "Action": actions, "Resource": "*"}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [allowed]})
        iam.put_user_policy(UserName="worker", PolicyName="so-much", PolicyDocument=policy)
        key = iam.create_access_key(UserName="worker")["AccessKey"]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        httpx.post(f"{server}/moto-api/reset-auth", content="0")
        forget()

    yield become
    httpx.post(f"{server}/moto-api/reset-auth", content="inf")


def command(folder: object, output: object) -> list[str]:
    words = ",".join(category["name"] for category in read_dataset(SCENES / "dataset.json")["categories"][:3])
    return ["label", str(folder), "--output", str(output), "--device", "cpu", "--queries", words, "--batch", "1"]


def test_a_killed_command_resumes_with_a_damaged_image(s3, tmp_path):
    """Five images, one truncated and one in a subfolder; SIGKILL after the first records."""
    folder = tmp_path / "photos"
    (folder / "deep er").mkdir(parents=True)
    scenes = sorted((SCENES / "images").iterdir())[:5]
    for number, scene in enumerate(scenes):
        (folder / ("deep er" if number == 3 else "") / scene.name).write_bytes(scene.read_bytes())
    (folder / scenes[2].name).write_bytes(scenes[2].read_bytes()[:6000])
    upload(s3, folder, "photos")
    s3.put_object(Bucket="bucket", Key="photos/", Body=b"")  # as consoles make for a folder
    s3.put_object(Bucket="bucket", Key="photos2/other.jpg", Body=scenes[0].read_bytes())

    output = "s3://bucket/out/labels.json"
    journal = journal_path(place_of(output))
    arguments = [sys.executable, "-m", "text2seg", *command("s3://bucket/photos", output)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums are rounded alike in both processes
    process = subprocess.Popen(arguments, cwd=ROOT, env=os.environ | threads, stderr=subprocess.PIPE)
    end = time.monotonic() + PATIENCE
    while not journal.is_file() or journal.read_bytes().count(b'{"file"') < 2:
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    done = journal.read_bytes().count(b'{"file"')
    assert 2 <= done < 5
    assert "out/labels.json" not in keys(s3)

    before = journal.read_bytes()
    assert main(command("s3://bucket/photos", output)) == PARTLY
    assert journal.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    assert main(command(folder, tmp_path / "labels.json")) == PARTLY
    here, there = (tmp_path / "labels.json").read_bytes(), content(s3, "out/labels.json")
    assert here.count(b'"folder": "photos"') == 1
    assert there == here.replace(b'"folder": "photos"', b'"folder": "s3://bucket/photos"')
    dataset = json.loads(there)
    (failure,) = dataset["info"]["failures"]
    assert (failure["file_name"], failure["stage"]) == (scenes[2].name, "read")
    assert "truncated" in failure["message"]
    assert f"deep er/{scenes[3].name}" in [image["file_name"] for image in dataset["images"]]
    assert dataset["annotations"]
    assert [key for key in keys(s3) if key.startswith(("out", "."))] == ["out/labels.json"]


def test_unusual_object_names_are_labelled(s3, photos, tmp_path):
    for name in ("a b+c.png", "100%?#[x]*.png", "a::b.png", "ä/ß.png", "tilde~'\".png"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes((photos / "0002.png").read_bytes())
    upload(s3, photos, "photos")
    s3.put_object(Bucket="bucket", Key="photos/double//slash.png", Body=(photos / "0002.png").read_bytes())
    report = jobs.run("s3://bucket/photos", "s3://bucket/ä b/labels.json")
    assert report.failed == 0
    names = {image["file_name"] for image in json.loads(content(s3, "ä b/labels.json"))["images"]}
    assert {"a b+c.png", "100%?#[x]*.png", "a::b.png", "ä/ß.png", "double//slash.png"} < names
    assert report.images == 16


def test_a_scan_of_several_pages_is_complete(s3, monkeypatch):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "5")
    for number in range(23):
        s3.put_object(Bucket="bucket", Key=f"many/{number}.png", Body=b"x")
    assert s3.list_objects_v2(Bucket="bucket")["IsTruncated"]
    scan = list_images(place_of("s3://bucket/many"))
    assert len(scan) == 23
    assert list(scan.files) == sorted(scan.files)


def test_a_missing_bucket_folder_or_object_is_reported(s3, photos):
    with pytest.raises(ImageError, match=r"s3://nobucket/photos.*no such object or bucket"):
        list_images(place_of("s3://nobucket/photos"))
    with pytest.raises(ImageError, match=r"s3://bucket/nowhere: there is no such folder"):
        list_images(place_of("s3://bucket/nowhere"))
    models = jobs.FakeModels()
    with pytest.raises(OutputError, match=r"s3://nobucket/labels.json.*no such object or bucket"):
        jobs.run(photos, "s3://nobucket/labels.json", models=models)
    with pytest.raises(OutputError, match=r"s3://bucket"):
        jobs.run(photos, "s3://bucket", models=models)
    assert models.batches == []


def test_no_permission_to_write_is_reported_before_the_first_image(s3, photos, restricted):
    upload(s3, photos, "photos")
    restricted(MAY_READ)
    models = jobs.FakeModels()
    with pytest.raises(OutputError, match=r"s3://bucket/labels.json: no permission to write it; check the cred"):
        jobs.run("s3://bucket/photos", "s3://bucket/labels.json", models=models)
    assert models.batches == []


def test_no_permission_to_read_is_a_failure_of_each_image(s3, photos, restricted):
    upload(s3, photos, "photos")
    restricted(["s3:ListBucket"])
    message = r"none of the 10 images .* 0002\.png: no permission to read it; check the credentials"
    with pytest.raises(ImageError, match=message):
        jobs.run("s3://bucket/photos", photos.parent / "labels.json")
    assert not (photos.parent / "labels.json").exists()


def test_no_permission_to_list_raises(s3, photos, restricted):
    upload(s3, photos, "photos")
    restricted(["s3:GetObject"])
    with pytest.raises(ImageError, match=r"s3://bucket/photos: no permission to list it"):
        list_images(place_of("s3://bucket/photos"))


def test_missing_credentials_raise(s3, photos, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    forget()
    with pytest.raises(ImageError, match=r"s3://bucket/photos: .*credentials"):
        list_images(place_of("s3://bucket/photos"))


def test_an_unreachable_server_raises(s3, photos, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    forget()
    with pytest.raises(ImageError, match=r"s3://bucket/photos: could not list it .*127.0.0.1:9"):
        list_images(place_of("s3://bucket/photos"))


def test_a_bucket_deleted_during_the_job_loses_nothing(s3, photos):
    class Late:
        def run(self, work, batches, deliver, stopping):
            LocalEngine(jobs.FakeModels()).run(work, batches, deliver, stopping)
            s3.delete_bucket(Bucket="bucket")

    with pytest.raises(OutputError, match=r"no such object or bucket.*run the same command again to upload it"):
        jobs.run(photos, "s3://bucket/labels.json", engine=Late())
    s3.create_bucket(Bucket="bucket")
    models = jobs.FakeModels()
    jobs.run(photos, "s3://bucket/labels.json", models=models)
    assert models.batches == []
    assert len(json.loads(content(s3, "labels.json"))["images"]) == 10


def test_a_foreign_output_is_not_overwritten(s3, photos):
    s3.put_object(Bucket="bucket", Key="labels.json", Body=b"{}")
    with pytest.raises(OutputError, match="exists, and no journal"):
        jobs.run(photos, "s3://bucket/labels.json")
    jobs.run(photos, "s3://bucket/labels.json", overwrite=True)
    jobs.run(photos, "s3://bucket/labels.json")
    s3.put_object(Bucket="bucket", Key="labels.json", Body=b"{}")
    with pytest.raises(OutputError, match="was changed since"):
        jobs.run(photos, "s3://bucket/labels.json")
    assert content(s3, "labels.json") == b"{}"


def test_an_ontology_is_read_from_a_bucket(s3):
    s3.put_object(Bucket="bucket", Key="things.yaml", Body=b"categories: [sheep]")
    assert [each.name for each in read_ontology(place_of("s3://bucket/things.yaml")).categories] == ["sheep"]
