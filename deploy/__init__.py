"""Ways to run the product; `demo` is the smallest, one machine and one command."""
