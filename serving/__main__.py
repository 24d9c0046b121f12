"""``python -m serving``."""

import os
import sys

from serving.server import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
