"""All decoders by name. A new decoder is one file here and one line below."""

from whitebox.models.decoders.base import Decoder
from whitebox.models.decoders.cbsa import CBSADecoder
from whitebox.models.decoders.crate import CrateDecoder
from whitebox.models.decoders.depict_ca import DepictCA
from whitebox.models.decoders.depict_sa import DepictSA
from whitebox.models.decoders.open_queries import OpenCBSA, OpenDepictSA
from whitebox.models.decoders.sed import SED
from whitebox.models.decoders.segmenter_linear import SegmenterLinear
from whitebox.models.decoders.segmenter_mask import SegmenterMask
from whitebox.models.decoders.segvit import SegViT, SegViTShrunk
from whitebox.models.decoders.tost import ToSTDecoder

DECODERS: dict[str, type[Decoder]] = {
    "cbsa": CBSADecoder,
    "cbsa-open": OpenCBSA,
    "crate": CrateDecoder,
    "depict-ca": DepictCA,
    "depict-sa": DepictSA,
    "depict-sa-open": OpenDepictSA,
    "sed": SED,
    "segmenter-linear": SegmenterLinear,
    "segmenter-mask": SegmenterMask,
    "segvit": SegViT,
    "segvit-shrunk": SegViTShrunk,
    "tost": ToSTDecoder,
}

__all__ = ["DECODERS", "Decoder"]
