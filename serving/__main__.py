"""``python -m serving``, ``python -m serving doctor`` and ``python -m serving healthcheck``."""

import os
import sys

if __name__ == "__main__":
    # Imported here: a health check is to load no model runtime, and is run every few seconds.
    # ONNX Runtime's builds for Linux report what they run, if they are not told before they load.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    command, arguments = sys.argv[1:2], sys.argv[2:]
    if command == ["healthcheck"]:
        from serving import healthcheck

        sys.exit(healthcheck.main(arguments, os.environ))
    if command == ["doctor"]:
        from serving import doctor

        sys.exit(doctor.main(arguments, os.environ))
    from serving import main

    sys.exit(main.main(sys.argv[1:], os.environ))
