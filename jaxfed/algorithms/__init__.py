"""Algorithms, one function each: `from jaxfed.algorithms import fedavg`.

general: over any theta; shared: over one set of factors; personal: clients keep factors. Each has
a module of its own there, with what else its users need, such as
`jaxfed.algorithms.general.perfedavg.exact`. `zoo` is the table of all methods.
"""

from jaxfed.algorithms.zoo import *  # noqa: F403 (the zoo lists the names, once)
