"""`python -m mlabel` is the `mlabel` command."""

import sys

from mlabel.cli import main

sys.exit(main())
