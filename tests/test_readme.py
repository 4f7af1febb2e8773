"""The README's Python runs as it stands, and its commands name flags and files that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from text2seg.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("text2seg segment text2seg/")
]


@pytest.mark.parametrize("number", range(len(PYTHON)))
def test_python(number, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(compile(PYTHON[number], f"README.md, block {number}", "exec"), {})
    if number == 0:
        assert "koala" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(command, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert main([*shlex.split(command)[1:], "--output", str(tmp_path)]) == 0


def test_flags_in_the_table_exist(capsys):
    with pytest.raises(SystemExit):
        main(["segment", "--help"])
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
