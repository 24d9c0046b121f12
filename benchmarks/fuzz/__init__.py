"""`make fuzz`: bad input of every kind, by the million, to real servers.

tests/reliability/FUZZING.md has what was run."""
