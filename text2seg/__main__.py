"""`python -m text2seg` is `text2seg`."""

import sys

from text2seg.cli import main

sys.exit(main())
