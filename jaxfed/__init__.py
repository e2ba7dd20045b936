"""jaxfed: federated learning with low-rank updates, clients as an array axis."""

from importlib import metadata

from jaxfed import aggregate as aggregate
from jaxfed import algorithms as algorithms
from jaxfed import combine as combine
from jaxfed import data as data
from jaxfed import hypergrad as hypergrad
from jaxfed import local as local
from jaxfed import lowrank as lowrank
from jaxfed import models as models
from jaxfed import pretrained as pretrained
from jaxfed import tasks as tasks
from jaxfed.algorithm import Algorithm as Algorithm
from jaxfed.algorithm import Cohort as Cohort
from jaxfed.algorithm import Reply as Reply
from jaxfed.analysis.certify.certificate import check as check
from jaxfed.cli.frames import results as results
from jaxfed.cli.loading import load as load
from jaxfed.simulation.experiment import Experiment as Experiment
from jaxfed.simulation.experiment import Host as Host
from jaxfed.simulation.run import run as run
from jaxfed.simulation.stopping import patience as patience

__version__ = metadata.version("jaxfed")
