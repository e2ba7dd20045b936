"""Combinators: Algorithm -> Algorithm. They wrap the server or the verb `for_each_client`."""

from jaxfed.combine import compress as compress
from jaxfed.combine.absence import unreliable as unreliable
from jaxfed.combine.alternatives import counterfactual as counterfactual
from jaxfed.combine.compress import compressed as compressed
from jaxfed.combine.deployment import fine_tuned as fine_tuned
from jaxfed.combine.forms import gradient_of as gradient_of
from jaxfed.combine.forms import parametrised as parametrised
from jaxfed.combine.guard import skip_nonfinite as skip_nonfinite
from jaxfed.combine.listing import accumulate_list as accumulate_list
from jaxfed.combine.measure import with_discrepancy as with_discrepancy
from jaxfed.combine.merging import accumulate as accumulate
from jaxfed.combine.privacy import private as private
from jaxfed.combine.sparse import flasc as flasc
