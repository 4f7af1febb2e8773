"""Start the browser app: `python app.py` is `text2seg app`."""

import sys

from text2seg.__main__ import main

if __name__ == "__main__":
    sys.argv.insert(1, "app")
    sys.exit(main())
