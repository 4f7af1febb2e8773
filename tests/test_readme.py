"""The README's Python runs as it stands, and its commands name flags and files that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from text2seg.cli import main
from text2seg.explain import TOOLS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
LINES = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
COMMANDS = [line for line in LINES if line.startswith("text2seg segment text2seg/")]
EXPLANATIONS = re.findall(r"^\| `([a-z-]+)` \| .* \| `(.*)` \|$", README, re.MULTILINE)
LABELLING = [line for line in LINES if line.startswith("text2seg") and " outputs/" in line]


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python(number, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(compile(PYTHON[number], f"README.md, block {number}", "exec"), {})
    if number == 0:
        assert "sheep" in capsys.readouterr().out


def test_a_folder_becomes_a_dataset(monkeypatch, tmp_path, capsys):
    """The commands of that section, one after the other, on three of the scenes."""
    monkeypatch.chdir(ROOT)
    for command in LABELLING:
        words = shlex.split(command.replace("outputs/", f"{tmp_path.as_posix()}/"))[1:]
        assert main([*words, "--limit", "3"] if words[0] == "label" else words) == 0, capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} >= {"labels.json", "review.html", "scores.html", "yolo"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert main([*shlex.split(command)[1:], "--output", str(tmp_path)]) == 0


def test_every_explanation_tool_is_in_the_table_with_a_command_that_is_understood(monkeypatch, tmp_path, capsys):
    """Each command is read as typed; what the tools do then is tested with them."""
    asked = []
    monkeypatch.setattr("text2seg.cli.explain._run", lambda tool, flags: asked.append(tool.name) or 0)
    for name, command in EXPLANATIONS:
        assert main(["explain", *shlex.split(command)]) == 0, capsys.readouterr().err
        assert asked[-1] == name
    assert sorted(asked) == sorted(TOOLS)


def test_flags_in_the_table_exist(capsys):
    explain = [f"explain {name}" for name in TOOLS]
    for command in (
        "segment",
        "label",
        "report",
        "evaluate",
        "convert",
        "replay",
        "benchmark",
        "app",
        "bench",
        *explain,
    ):
        with pytest.raises(SystemExit):
            main([*command.split(), "--help"])
    text = capsys.readouterr().out
    for flag in set(re.findall(r"--[a-z][a-z-]+", README)):
        assert flag in text, flag


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target


def test_there_are_examples():
    assert len(PYTHON) == 2
    assert len(COMMANDS) == 1
    assert len(LABELLING) == 4
