"""Algorithms, one function each: general (any theta), shared (common factors), personal."""

from jaxfed.algorithms.general.centralised import centralised as centralised
from jaxfed.algorithms.general.ditto import ditto as ditto
from jaxfed.algorithms.general.fedavg import fedavg as fedavg
from jaxfed.algorithms.general.fedper import fedper as fedper
from jaxfed.algorithms.general.fedprox import fedprox as fedprox
from jaxfed.algorithms.general.perfedavg import perfedavg as perfedavg
from jaxfed.algorithms.general.scaffold import scaffold as scaffold
from jaxfed.algorithms.personal.fdlora import fdlora as fdlora
from jaxfed.algorithms.personal.feddpa_f import feddpa_f as feddpa_f
from jaxfed.algorithms.personal.feddpa_t import feddpa_t as feddpa_t
from jaxfed.algorithms.personal.fedsa import fedsa as fedsa
from jaxfed.algorithms.personal.pf2lora import pf2lora as pf2lora
from jaxfed.algorithms.personal.pfedlora import pfedlora as pfedlora
from jaxfed.algorithms.personal.pfedloru import pfedloru as pfedloru
from jaxfed.algorithms.shared.fedloru import fedloru as fedloru
from jaxfed.algorithms.shared.hetlora import hetlora as hetlora
from jaxfed.algorithms.shared.mfedloru import mfedloru as mfedloru
