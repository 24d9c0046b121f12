"""Training: digit images in, verified and published models out."""
