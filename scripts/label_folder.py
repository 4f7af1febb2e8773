"""`text2seg label` as a script, for a clone that is not installed: python scripts/label_folder.py photos --query dog"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from text2seg.cli import main

if __name__ == "__main__":
    sys.exit(main(["label", *sys.argv[1:]]))
