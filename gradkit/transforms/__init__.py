"""One link of a chain per file: pure functions on gradients."""
