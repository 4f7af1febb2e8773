"""The wheel, the Dockerfile, the lock and the list of licences. No Docker image is built here."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import tyro
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from text2seg.app.guard import ALLOWED
from text2seg.cli import COMMANDS

ROOT = Path(__file__).parents[1]


def instructions():
    """Return the Dockerfile's instructions as (name, rest), with continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text("utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def of(name):
    return [rest for instruction, rest in instructions() if instruction == name]


def exclude_patterns():
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def is_sent(path):
    """Return whether the builder gets a path. The last rule that matches it or a parent folder applies."""
    sent = True
    for rule in exclude_patterns():
        pattern = rule.removeprefix("!")
        names = [path, *map(str, Path(path).parents)][:-1] if "/" in path else [path]
        deep = [pattern, pattern.removeprefix("**/")]
        if any(fnmatchcase(name, each) or fnmatchcase(Path(name).name, deep[-1]) for name in names for each in deep):
            sent = rule.startswith("!")
    return sent


def test_the_build_context_has_exactly_the_files_that_the_image_copies():
    copied = [source for rest in of("COPY") if "--from" not in rest for source in rest.split()[:-1]]
    assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE", "text2seg"} == set(copied)
    for source in copied:
        assert (ROOT / source).exists()
        assert is_sent(source)
    for kept_back in (".git", ".venv", "runs", "checkpoints", "tests", "text2seg/__pycache__", "text2seg/a.pyc"):
        assert not is_sent(kept_back), kept_back
    assert is_sent("text2seg/demo/clip_demo.pt")


def test_the_image_runs_as_a_user_with_the_health_check_of_the_app():
    assert of("USER") == ["text2seg"]
    names = [name for name, _ in instructions()]
    assert names.index("USER") < names.index("CMD")
    assert len(of("FROM")) == 2  # compilers and sources stay in the first
    check = json.loads(of("HEALTHCHECK")[0].partition("CMD ")[2])
    compile(check[-1], "HEALTHCHECK", "exec")
    route = re.search(r"'GET', '([^']+)'", check[-1])[1]
    assert ALLOWED["GET"].fullmatch(route)
    port = of("EXPOSE")[0]
    assert f"', {port}," in check[-1]
    command = json.loads(of("ENTRYPOINT")[0])[1:] + json.loads(of("CMD")[0])
    app = tyro.cli(COMMANDS[command[0]].load(), args=command[1:], config=(tyro.conf.OmitArgPrefixes,))
    assert (app.app.host, app.app.port) == ("0.0.0.0", int(port))


def test_compose_listens_on_loopback_and_keeps_checkpoints():
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
    stages = {rest.split(" AS ")[1] for rest in of("FROM")}
    environment = dict(each.split("=", 1) for rest in of("ENV") for each in rest.split())
    for name, service in compose["services"].items():
        assert service["build"]["target"] in stages
        assert set(service["build"]["args"]) <= {rest.partition("=")[0] for rest in of("ARG")}
        (port,) = service["ports"]
        assert port.startswith("127.0.0.1:")
        assert port.endswith(f":{of('EXPOSE')[0]}")
        (volume,) = service["volumes"]
        assert volume.split(":") == ["checkpoints", environment["TEXT2SEG_CHECKPOINTS"]]
        assert ("profiles" in service) == (name == "app-cuda")
    assert set(compose["volumes"]) == {"checkpoints"}


def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "text2seg", source / "text2seg", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("text2seg-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as file:
        held = set(file.namelist())
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "text2seg").rglob("*") if path.is_file()}
    wanted = {name for name in files if "__pycache__" not in name}
    assert sorted(wanted - held) == []
    assert not {name for name in held if name.startswith(("tests", "scripts", "docs"))}


def locked():
    """Return the versions in the lock by package; different Pythons may need different ones."""
    found = {}
    for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;\\]+)", line):
            found.setdefault(canonicalize_name(match[1]), []).append(match[2])
    return found


def asked():
    """Return the requirements of the package and of each extra."""
    setup = configparser.ConfigParser(inline_comment_prefixes="#")
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    all_of = {"": setup["options"]["install_requires"], **setup["options.extras_require"]}
    return {name: [Requirement(line) for line in lines.split("\n") if line.strip()] for name, lines in all_of.items()}


def test_the_lock_has_hashes_for_all_packages_of_tests_and_no_urls():
    text = (ROOT / "requirements.lock").read_text("utf-8")
    assert "://" not in text
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert all("--hash=sha256:" in block for block in blocks)
    versions, all_of = locked(), asked()
    (own,) = [one for one in all_of["dev"] if one.name == "text2seg"]
    for one in [*all_of[""], *all_of["dev"], *(each for extra in own.extras for each in all_of[extra])]:
        if one.name != "text2seg":
            found = versions.get(canonicalize_name(one.name), [])
            assert found, f"{one} is not in requirements.lock: make lock"
            assert all(one.specifier.contains(version) for version in found), f"{one}: make lock"


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
@pytest.mark.parametrize(("target", "package"), [("demo", "."), ("app", ".[app,explain]"), ("test", ".[dev]")])
def test_each_target_installs_only_what_it_needs(tmp_path, target, package):
    command = ["make", "--dry-run", f"VENV={tmp_path}/venv", target]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r'--editable "(.*?)"', said)) == {package}


@pytest.mark.parametrize("extra", ["", "app", "explain", "search"])
def test_the_list_of_licences_has_all_packages_of_every_extra(extra):
    text = (ROOT / "docs" / "licences.md").read_text("utf-8")
    listed = {canonicalize_name(name) for name in re.findall(r"^\| ([A-Za-z0-9._-]+) \|", text, re.MULTILINE)}
    missing = {canonicalize_name(one.name) for one in asked()[extra]} - listed
    assert not missing, f"{missing}: make licences"
