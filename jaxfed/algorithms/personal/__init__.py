"""Algorithms whose clients keep factors of their own."""
