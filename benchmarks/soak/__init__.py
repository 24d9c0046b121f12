"""A million requests and hundreds of reloads, and what memory, descriptors and threads the server
keeps of them: `python -m benchmarks.soak models/linear/1`."""
