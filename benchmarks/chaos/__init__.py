"""Faults under steady load, and a ledger of what became of every request: `make chaos`."""
