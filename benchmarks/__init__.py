"""Runnable comparisons; each writes JSON and a table to benchmarks/results."""
