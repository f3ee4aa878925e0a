"""Clips on disk to balanced batches."""
