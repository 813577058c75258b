"""Pairs with ground truth, made by worker processes."""
