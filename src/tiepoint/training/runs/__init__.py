"""Runs of training: one folder each, resumable."""
