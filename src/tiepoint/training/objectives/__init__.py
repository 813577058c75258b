"""Losses: what each kind of training minimises."""
