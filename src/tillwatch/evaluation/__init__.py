"""Scores on labelled clips, and what may be claimed from them."""
