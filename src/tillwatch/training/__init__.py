"""Clips to a run folder."""
