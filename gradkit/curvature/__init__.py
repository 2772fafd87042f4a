"""From a problem, parameters and a batch to a symmetric linear operator."""
