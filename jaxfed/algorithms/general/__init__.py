"""Algorithms that train any theta; none depends on factors."""
