"""Write docs/licences.md, the licences of all packages that text2seg installs: `make licences`.

    python scripts/licences.py            # print the document
    python scripts/licences.py --write    # write it

The tables have the packages that text2seg and its extras need, directly or indirectly, in the versions installed in
this environment. Packages that only developers need have their own table. pip-licenses reads the packages' metadata.
"""

from __future__ import annotations

import argparse
import configparser
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

TARGET = Path(__file__).parents[1] / "docs" / "licences.md"
SETUP = TARGET.parents[1] / "setup.cfg"
HEAD = """# Licences

text2seg's own code is under the [MIT licence](../LICENSE). The bundled scenes show drawings of emoji vendors and are
under CC BY-SA 4.0; the bundled models were trained on such drawings.
[The table of drawings](demo_model.md#the-scenes) lists the vendors and their licences: Apache 2.0, MIT, CC BY 4.0,
CC BY-SA 4.0. Published weights, which `text2seg checkpoints download` fetches, have their own licences and are not part
of text2seg.

`make licences` wrote this page from the metadata of the packages installed at that time (Linux, Python {python}).
text2seg's wheel contains none of these packages; pip downloads them.

## Not permissive, or not said

None of these licences affects text2seg's own code. If you distribute an image or installer that contains these
packages, their conditions apply to it: MPL requires that changed sources of the package stay open, and NVIDIA's
libraries have NVIDIA's terms (torch's wheels for Linux bring them; its wheels for the CPU do not). Wheels may contain
libraries that their metadata does not name: OpenCV's wheel contains FFmpeg, under the LGPL.
"""
NO_USERS = ("dev", "demo-world")  # extras for work on text2seg itself
SAID_ELSEWHERE = {
    "openai-clip": "MIT (says its repository, the package does not)",
    "segment-anything": "Apache-2.0 (says its repository, the package does not)",
    "cuda-toolkit": "NVIDIA's terms (an empty package that names others)",
}
PERMISSIVE = ("MIT", "BSD", "Apache", "ISC", "PSF", "Python Software Foundation", "HPND", "Unlicense", "Zlib", "CC0")
PERMISSIVE += ("MIT-CMU", "0BSD", "BSL-1.0", "Boost", "Public Domain", "CNRI", "PIL", "Historical Permission")
WITH_CONDITIONS = re.compile(r"GPL|MPL|Mozilla|EPL|Eclipse|CDDL|EUPL|NVIDIA|Proprietary|Commercial|SSPL", re.IGNORECASE)


def extras() -> dict[str, list[Requirement]]:
    """Return the requirements of each extra in setup.cfg; "" has the requirements without an extra."""
    setup = configparser.ConfigParser(inline_comment_prefixes="#")
    setup.read(SETUP, encoding="utf-8")
    asked = {"": setup["options"]["install_requires"], **setup["options.extras_require"]}
    return {name: [Requirement(line) for line in lines.split("\n") if line.strip()] for name, lines in asked.items()}


def needed(roots: Iterable[Requirement]) -> set[str]:
    """Return the canonical names of the installed packages that these requirements need, directly or indirectly."""
    found: set[str] = set()
    seen: set[tuple[str, str]] = set()
    waiting = list(roots)
    while waiting:
        one = waiting.pop()
        name = canonicalize_name(one.name)
        for extra in {"", *one.extras} - {extra for package, extra in seen if package == name}:
            seen.add((name, extra))
            try:
                further = [Requirement(each) for each in requires(name) or ()] if name != "text2seg" else []
            except PackageNotFoundError:
                continue
            found.add(name)
            waiting += [each for each in further if each.marker is None or each.marker.evaluate({"extra": extra})]
    return found - {"text2seg"}


def licences() -> dict[str, tuple[str, str, str]]:
    """Return name, version and licence of every installed package, by canonical name."""
    command = [sys.executable, "-m", "piplicenses", "--format=json", "--from=mixed", "--with-system"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return {
        name: (each["Name"], each["Version"], SAID_ELSEWHERE.get(name) or short(each["License"]))
        for each in json.loads(answer.stdout)
        for name in [canonicalize_name(each["Name"])]
    }


def short(licence: str) -> str:
    """Return the licence in one line. Some packages give its whole text instead of its name."""
    first = next((line.strip() for line in licence.splitlines() if line.strip()), "")
    return first[:80].replace("|", "/") if first and first != "UNKNOWN" else "not said"


def is_permissive(licence: str) -> bool:
    return not WITH_CONDITIONS.search(licence) and any(name.lower() in licence.lower() for name in PERMISSIVE)


def table(names: Iterable[str], known: dict[str, tuple[str, str, str]]) -> list[str]:
    rows = sorted((known[name] for name in names if name in known), key=lambda row: row[0].lower())
    return ["| package | version | licence |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]


def document() -> str:
    known = licences()
    asked = extras()
    for_users = [name for name in asked if name not in NO_USERS]
    used = needed(one for name in for_users for one in asked[name])
    developers = needed(asked["dev"]) - used
    others = table((name for name in used if name in known and not is_permissive(known[name][2])), known)
    names = ", ".join(filter(None, for_users))
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    parts = [
        HEAD.format(python=python),
        *others,
        "",
        "## What users install",
        "",
        f"text2seg with the extras {names}: {len(used & set(known))} packages.",
        "",
        *table(used, known),
        "",
        "## What only developers install",
        "",
        *table(developers, known),
        "",
    ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {TARGET.name} instead of printing it")
    if not parser.parse_args().write:
        print(document())
        return
    TARGET.write_text(document(), encoding="utf-8")


if __name__ == "__main__":
    main()
