"""Algorithms over one set of factors that all clients share."""
