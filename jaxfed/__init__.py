"""jaxfed: federated learning with low-rank updates, clients as an array axis."""

from jaxfed import aggregate as aggregate
from jaxfed import algorithms as algorithms
from jaxfed import combine as combine
from jaxfed import data as data
from jaxfed import local as local
from jaxfed import lowrank as lowrank
from jaxfed import models as models
from jaxfed import pretrained as pretrained
from jaxfed import task as task
from jaxfed.algorithm import Algorithm as Algorithm
from jaxfed.algorithm import Cohort as Cohort
from jaxfed.algorithm import Reply as Reply
from jaxfed.algorithms.fedavg import fedavg as fedavg
from jaxfed.algorithms.fedloru import fedloru as fedloru
from jaxfed.algorithms.fedprox import fedprox as fedprox
from jaxfed.algorithms.scaffold import scaffold as scaffold
from jaxfed.experiment import Experiment as Experiment
from jaxfed.experiment import Host as Host
from jaxfed.run import run as run
