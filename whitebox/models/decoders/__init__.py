"""All decoders by name. A new decoder is one file here and one line below."""

from whitebox.models.decoders.base import Decoder
from whitebox.models.decoders.depict_ca import DepictCA
from whitebox.models.decoders.depict_sa import DepictSA
from whitebox.models.decoders.segmenter_linear import SegmenterLinear
from whitebox.models.decoders.segmenter_mask import SegmenterMask

DECODERS: dict[str, type[Decoder]] = {
    "depict-ca": DepictCA,
    "depict-sa": DepictSA,
    "segmenter-linear": SegmenterLinear,
    "segmenter-mask": SegmenterMask,
}

__all__ = ["DECODERS", "Decoder"]
