"""TorchServe as a second runtime for what is published: archives, settings, a handler."""
