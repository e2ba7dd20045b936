"""The algorithms, one function each: `from jaxfed.algorithms import fedavg`.

general: any theta; shared: one set of factors; personal: clients keep factors. Each algorithm has
its own module there, which may define arguments for it, such as
`jaxfed.algorithms.general.perfedavg.exact`. `zoo` is the table of all methods.
"""

from jaxfed.algorithms.zoo import *  # noqa: F403 (the zoo lists the names, once)
