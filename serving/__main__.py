"""``python -m serving``, and ``python -m serving doctor``."""

import os
import sys

from serving import doctor, main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[:1] == ["doctor"]:
        sys.exit(doctor.main(arguments[1:], os.environ))
    sys.exit(main.main(arguments, os.environ))
