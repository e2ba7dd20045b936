"""One file an algorithm, each over any theta."""

from jaxfed.algorithms import fedopt as fedopt
from jaxfed.algorithms.fedavg import fedavg as fedavg
from jaxfed.algorithms.fedloru import fedloru as fedloru
from jaxfed.algorithms.fedprox import fedprox as fedprox
from jaxfed.algorithms.scaffold import scaffold as scaffold
