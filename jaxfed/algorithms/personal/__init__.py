"""Algorithms whose clients keep their own factors."""
