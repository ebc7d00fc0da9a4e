"""``python -m mmrec_helpers``."""

import sys

from mmrec_helpers.cli import main

if __name__ == "__main__":
    sys.exit(main())
