"""From an operator to numbers with errors."""
