"""Thresholds and probabilities fitted on pairs with known answers."""
