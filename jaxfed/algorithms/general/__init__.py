"""Algorithms over any theta; none knows of factors."""
