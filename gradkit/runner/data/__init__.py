"""What models learn from: named data sets, files of the user's, their split and their batches."""
