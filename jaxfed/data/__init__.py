"""Data: where examples come from, who owns them, and what is done to images on the way."""

from typing import TYPE_CHECKING

from jaxfed import lazily

if TYPE_CHECKING:
    from jaxfed.data.federated import Federated as Federated
    from jaxfed.data.federated import Split as Split
    from jaxfed.data.federated import capacity as capacity
    from jaxfed.data.federated import federate as federate
    from jaxfed.data.federated import label_table as label_table
    from jaxfed.data.federated import pack as pack
    from jaxfed.data.sources import Source as Source

WHERE = {
    "Federated": "jaxfed.data.federated",
    "Split": "jaxfed.data.federated",
    "capacity": "jaxfed.data.federated",
    "federate": "jaxfed.data.federated",
    "label_table": "jaxfed.data.federated",
    "pack": "jaxfed.data.federated",
    "Source": "jaxfed.data.sources",
}
__getattr__, __dir__ = lazily(__name__, WHERE)
