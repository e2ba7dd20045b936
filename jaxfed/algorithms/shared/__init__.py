"""Algorithms whose clients all share one set of factors."""
