"""Whether all runtimes give the same answers: ``python -m benchmarks.parity``."""
