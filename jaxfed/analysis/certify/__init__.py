"""Certificates: what holds for an algorithm, measured in a little world; `jaxfed check`."""
