"""Start the browser app: `python app.py` is `text2seg app`."""

import sys

from text2seg.cli import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
