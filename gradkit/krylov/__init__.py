"""From an operator and a tree to a solution or a factorization; knows no loss."""
