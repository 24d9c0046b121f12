"""Our server beside its peers, in one run: ``python -m benchmarks.serving``."""
