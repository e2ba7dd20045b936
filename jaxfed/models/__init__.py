"""Models: flax.linen modules that are called as model(x, train=..., mask=...)."""

from jaxfed.models.cnn import FemnistCNN as FemnistCNN
from jaxfed.models.decoder import Cache as Cache
from jaxfed.models.decoder import Decoder as Decoder
from jaxfed.models.decoder import Scaling as Scaling
from jaxfed.models.encoder import Encoder as Encoder
from jaxfed.models.linear import Linear as Linear
from jaxfed.models.mlp import MLP as MLP
from jaxfed.models.relative import Relative as Relative
from jaxfed.models.resnet import ResNet as ResNet
from jaxfed.models.resnet import resnet10 as resnet10
from jaxfed.models.resnet import resnet18 as resnet18
from jaxfed.models.resnet import resnet34 as resnet34
from jaxfed.models.span import Span as Span
from jaxfed.models.vit import ViT as ViT
