"""One file an algorithm, each over any theta."""

from jaxfed.algorithms import fedopt as fedopt
from jaxfed.algorithms.centralised import centralised as centralised
from jaxfed.algorithms.ditto import ditto as ditto
from jaxfed.algorithms.fdlora import fdlora as fdlora
from jaxfed.algorithms.fedavg import fedavg as fedavg
from jaxfed.algorithms.feddpa import feddpa_f as feddpa_f
from jaxfed.algorithms.feddpa import feddpa_t as feddpa_t
from jaxfed.algorithms.fedloru import fedloru as fedloru
from jaxfed.algorithms.fedper import fedper as fedper
from jaxfed.algorithms.fedprox import fedprox as fedprox
from jaxfed.algorithms.fedsa import fedsa as fedsa
from jaxfed.algorithms.hetlora import hetlora as hetlora
from jaxfed.algorithms.mfedloru import mfedloru as mfedloru
from jaxfed.algorithms.perfedavg import perfedavg as perfedavg
from jaxfed.algorithms.pf2lora import pf2lora as pf2lora
from jaxfed.algorithms.pfedlora import pfedlora as pfedlora
from jaxfed.algorithms.pfedloru import pfedloru as pfedloru
from jaxfed.algorithms.scaffold import scaffold as scaffold
