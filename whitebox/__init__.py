"""whitebox: train, evaluate and dissect transformer decoders for semantic segmentation.

The public API is a handful of names; they load torch on first use, so that ``import whitebox`` is quick.

    create_model(name, num_classes, **overrides)   a new Segmentor
    load_model(path)                               a Segmentor from a run folder, weights file, official checkpoint, or
                                                   hf-hub:ORG/NAME
    segment(model, image)                          what it says of a photo, which a notebook shows
    record(model, *patterns)                       named activations, see whitebox.models.taps
    replace(model, {name: function})               the same changed, see whitebox.models.changes
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from whitebox.errors import WhiteboxError
from whitebox.extras import opencv_explained

if TYPE_CHECKING:
    from whitebox.api import create_model, load_model, segment
    from whitebox.models.taps import record, replace

__version__ = "0.1.0"
__all__ = ["WhiteboxError", "__version__", "create_model", "load_model", "record", "replace", "segment"]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name in ("create_model", "load_model", "segment"):
        with opencv_explained():
            from whitebox import api

        return getattr(api, name)
    if name in ("record", "replace"):
        from whitebox.models import taps

        return getattr(taps, name)
    hint = ""
    if name in ("WhiteboxTools", "download_wbt", "Runner"):
        hint = ": this is whitebox-seg; the geospatial package whitebox needs an environment of its own"
    raise AttributeError(f"module 'whitebox' has no attribute {name!r}{hint}")
