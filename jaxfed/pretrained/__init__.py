"""Text models and vision transformers from Hugging Face folders, and back.

Models are written whole; encoders and decoders also as adapters in PEFT's format.

model, params = pretrained.read("roberta-base", classes=2)
tokenizer = pretrained.tokenizer("roberta-base")
"""

from jaxfed.pretrained.checkpoints import decoder_with_tokenizer as decoder_with_tokenizer
from jaxfed.pretrained.decoders import read_decoder as read_decoder
from jaxfed.pretrained.export import write_model as write_model
from jaxfed.pretrained.folder import Account as Account
from jaxfed.pretrained.folder import account as account
from jaxfed.pretrained.folder import read as read
from jaxfed.pretrained.folder import tokenizer as tokenizer
from jaxfed.pretrained.llama2c import llama2c_tokenizer as llama2c_tokenizer
from jaxfed.pretrained.llama2c import read_llama2c as read_llama2c
from jaxfed.pretrained.peft import read_adapter as read_adapter
from jaxfed.pretrained.peft import write_adapters as write_adapters
from jaxfed.pretrained.vit import read_vit as read_vit
