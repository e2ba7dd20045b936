"""Probes of rank: spectra of Hessians, similarity of gradients, ranks of updates."""

from typing import TYPE_CHECKING

from jaxfed import lazily

if TYPE_CHECKING:
    from jaxfed.analysis import gradients as gradients
    from jaxfed.analysis import operators as operators
    from jaxfed.analysis import spectrum as spectrum
    from jaxfed.analysis import updates as updates

__getattr__, __dir__ = lazily(__name__, {})
