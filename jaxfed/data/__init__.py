"""Data: where examples come from, who owns them, and what is done to images on the way."""

from jaxfed.data.federated import Federated as Federated
from jaxfed.data.federated import Split as Split
from jaxfed.data.federated import capacity as capacity
from jaxfed.data.federated import federate as federate
from jaxfed.data.federated import label_table as label_table
from jaxfed.data.federated import pack as pack
from jaxfed.data.sources import Source as Source
