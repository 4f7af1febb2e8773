"""`python -m text2seg`: the same as `text2seg`."""

import sys

from text2seg.cli import main

sys.exit(main())
