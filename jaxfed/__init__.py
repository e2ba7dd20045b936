"""jaxfed: federated learning with low-rank updates, clients as an array axis.

Nothing is imported before it is used, so that the command line answers at once.
"""

import importlib
import pkgutil
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from jaxfed.cli.notebook import all_cores as all_cores
    from jaxfed.cli.notebook import follow as follow
    from jaxfed.simulation.experiment import Experiment as Experiment
    from jaxfed.simulation.host import Host as Host
    from jaxfed.simulation.run import run as run
    from jaxfed.simulation.stopping import patience as patience

__version__ = metadata.version("jaxfed")
WHERE = {
    "Algorithm": "jaxfed.algorithm",
    "Cohort": "jaxfed.algorithm",
    "Reply": "jaxfed.algorithm",
    "check": "jaxfed.analysis.certify.certificate",
    "results": "jaxfed.cli.frames",
    "load": "jaxfed.cli.loading",
    "all_cores": "jaxfed.cli.notebook",
    "follow": "jaxfed.cli.notebook",
    "Experiment": "jaxfed.simulation.experiment",
    "Host": "jaxfed.simulation.host",
    "run": "jaxfed.simulation.run",
    "patience": "jaxfed.simulation.stopping",
}


def lazily(
    package: str, where: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """(`__getattr__`, `__dir__`) of a package that imports what is in it at its first use.

    `where` is {name: the module that defines it}; the package's own modules need no entry. PEP 562.
    """
    here = sys.modules[package]
    modules = {module.name for module in pkgutil.iter_modules(here.__path__)}

    def attribute(name: str) -> Any:
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(where[name]), name)
        setattr(here, name, found)
        return found

    def names() -> list[str]:
        return sorted({*where, *modules, *(n for n in vars(here) if n.startswith("__"))})

    return attribute, names


__getattr__, __dir__ = lazily(__name__, WHERE)
