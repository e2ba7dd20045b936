"""Low-rank factors beside frozen weights: choose, apply, merge.

Beside a frozen kernel W [in, out] stand factors a [in, r] and b [r, out]; a layer returns

    y = x W + s (x a) b,        s = alpha / r,

and W + s a b is never formed while clients train. One rule covers every kernel: the factors of a
kernel [in..., out...] are a [in..., r] and b [r, out...], and their product is tensordot(a, b, 1).
For a k x k convolution, a is a k x k convolution into r channels and b a 1 x 1 convolution; for an
embedding, a is [vocabulary, r].
"""

from jaxfed.lowrank import forms as forms
from jaxfed.lowrank import gates as gates
from jaxfed.lowrank import mixed as mixed
from jaxfed.lowrank import quantised as quantised
from jaxfed.lowrank import restarts as restarts
from jaxfed.lowrank import rules as rules
from jaxfed.lowrank.factors import Factors as Factors
from jaxfed.lowrank.factors import Layer as Layer
from jaxfed.lowrank.factors import Theta as Theta
from jaxfed.lowrank.factors import beside as beside
from jaxfed.lowrank.factors import concat as concat
from jaxfed.lowrank.factors import cosine as cosine
from jaxfed.lowrank.factors import cut as cut
from jaxfed.lowrank.factors import each_layer as each_layer
from jaxfed.lowrank.factors import fresh as fresh
from jaxfed.lowrank.factors import from_product as from_product
from jaxfed.lowrank.factors import inner as inner
from jaxfed.lowrank.factors import joined as joined
from jaxfed.lowrank.factors import merge as merge
from jaxfed.lowrank.factors import merged as merged
from jaxfed.lowrank.factors import nbytes as nbytes
from jaxfed.lowrank.factors import norm as norm
from jaxfed.lowrank.factors import principal as principal
from jaxfed.lowrank.factors import product as product
from jaxfed.lowrank.factors import truncate as truncate
from jaxfed.lowrank.factors import variables as variables
from jaxfed.lowrank.interception import apply as apply
from jaxfed.lowrank.interception import features as features
from jaxfed.lowrank.interception import layers as layers
from jaxfed.lowrank.interception import trained as trained
from jaxfed.lowrank.select import Select as Select
from jaxfed.lowrank.select import everything as everything
from jaxfed.lowrank.select import split as split
from jaxfed.lowrank.verification import check as check
