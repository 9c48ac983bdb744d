"""The 15 corruptions of ImageNet-C by name, group and severity, as a user writes them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

from whitebox.catalog import nearest
from whitebox.errors import ConfigError
from whitebox.extras import require_extra

PACKAGE = "imagecorruptions-imaug"


GROUPS = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}


KINDS = tuple(kind for group in GROUPS.values() for kind in group)


SEVERITIES = (1, 2, 3, 4, 5)


def parse_kinds(text: str) -> tuple[str, ...]:
    """Corruptions from ``all`` or a comma list of kinds and groups (noise, blur, weather, digital), in `KINDS`' order.

    Raises:
        ConfigError: an unknown name.
    """
    chosen: set[str] = set()
    for part in (part.strip() for part in text.split(",")):
        if part == "all":
            chosen.update(KINDS)
        elif part in GROUPS:
            chosen.update(GROUPS[part])
        elif part in KINDS:
            chosen.add(part)
        else:
            hint = nearest(part, [*KINDS, *GROUPS])
            raise ConfigError(
                f"Unknown corruption {part!r}{hint} There are all, {', '.join(GROUPS)}, and {', '.join(KINDS)}."
            )
    return tuple(kind for kind in KINDS if kind in chosen)


def parse_severities(text: str) -> tuple[int, ...]:
    """Severities from ``3``, ``1:5`` or a comma list.

    Raises:
        ConfigError: none, or not whole numbers from 1 to 5, or reversed.
    """
    first, colon, last = text.partition(":")
    try:
        listed = range(int(first), int(last) + 1) if colon else [int(part) for part in text.split(",")]
    except ValueError:
        listed = []
    if not listed or not set(listed) <= set(SEVERITIES):
        raise ConfigError(f"--severity {text!r} is impossible: give 3, 1:5 or 1,3,5, from 1 (mild) to 5 (severe).")
    return tuple(sorted(set(listed)))


def package_version() -> str:
    """Version of the package that corrupts.

    Raises:
        ConfigError: it is not installed.
    """
    require_extra("corruptions", "robustness --corruptions")
    return importlib.metadata.version(PACKAGE)


def group_of(kind: str) -> str:
    """The group of ``GROUPS`` a corruption belongs to."""
    return next(group for group, kinds in GROUPS.items() if kind in kinds)


def shown_names(kinds: Sequence[str]) -> list[str]:
    """Corruptions as figures and tables write them."""
    return [kind.replace("_", " ").replace("jpeg", "JPEG") for kind in kinds]
