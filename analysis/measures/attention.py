"""Attention maps over a photo: which row of which layer's softmax weights, of which head or averaged how.

A map is one row of a layer's attention: the weights with which one token (a class embedding, a patch, the class token)
takes from the patches. Its values are the layer's own; nothing is normalised again. Of a layer in which representatives
look at all tokens with weights A, (R, T) a head, and hand back along A^T (CBSA), it is a row of A^T A, tokens by tokens
as the official code gives it (``return_attn``); only the rows asked for are computed. What is measured of it:

    on patches    share of the row that lies on patches; the rest lies on class embeddings or class tokens
    entropy       -sum p ln p of the row over patches, p scaled to sum 1; in nats and as a share of ln N. Clark et al.
                  2019, "What Does BERT Look At?", section 3.3
    in region     sum of p over the patches predicted as the class in question, beside these patches' share of the
                  photo, which is what uniform attention would give
    distance      sum of p times the Euclidean distance between patch and query, in patches: the attention distance of
                  Dosovitskiy et al. 2021, appendix D.7

Rollout (Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers", eq. 1): heads are averaged, the residual
stream counts as much as the attention, A' = (A + I) / 2, and layers are multiplied, A'_l ... A'_0. The same convention
holds for white-box layers, whatever their step size; MLPs, values and output maps play no part. A token that a layer
does not update keeps a row of I.

What is no attention is drawn in the same way, and measured by maximum, mean, and in region:

    masks         of a decoder whose attention is its masks (SegViT): sigmoid of the logits before softmax, averaged
                  over heads, of the last layer of each stage, and of their sum, which is the decoder's mask
    class maps    of a decoder that refines a map of each class (SED), with ``--masks`` too: the cosine of places and
                  names, mean over templates, and the sigmoid of the masks said before each layer and at the end
    memberships   of a decoder without attention (ToST): softmax over heads, a map a head

Shapes: H heads, M rows and C columns of a map (tokens), Q chosen rows, N patches, R representatives, T tokens of all
layers, K classes, h w patch grid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from analysis.measurement import Measurement, Progress, Quantity
from analysis.record import Answer
from whitebox.errors import ConfigError
from whitebox.names import listed

if TYPE_CHECKING:
    from analysis.consumed import Photos
    from whitebox.runs import Run, SavedRun


@dataclass(frozen=True, kw_only=True)
class Attention(Measurement):
    """What do class embeddings, patches or the class token look at? Attention maps over photos.

    A decoder without attention whose tokens have memberships in its heads (ToST) shows those.

    \b
    whitebox attention results/depict-sa-tiny-camvid photo.jpg --head all --classes car,road
    whitebox attention results/depict-ca-tiny-camvid photo.jpg --patch 3,21 --layer all
    whitebox attention results/depict-sa-tiny-camvid photo.jpg --encoder-layers --cls --rollout
    whitebox attention results/segvit-tiny-camvid photo.jpg --masks --layer all
    """

    kind = "attention"
    takes = "photos"
    layer: Annotated[str | None, Option(help="From 0, among the layers with such rows; all. Default: the last.")] = None
    head: Annotated[str | None, Option(help="From 0, mean or all. Default: mean.")] = None
    part: Annotated[bool, Option("--decoder-layers/--encoder-layers", help="Whose attention.")] = True
    classes: Annotated[
        str | None,
        Option(
            help="Class embeddings, car,road; where a name has a comma, with semicolons between them. Default in "
            "decoders: the three most predicted."
        ),
    ] = None
    patch: Annotated[
        list[str] | None, Option(metavar="ROW,COLUMN", help="A patch, both from 0; repeat for several.")
    ] = None
    cls: Annotated[bool, Option("--cls", help="The class token. Default in encoders.")] = False
    rollout: Annotated[bool, Option("--rollout", help="Multiplied over layers, from the first to --layer.")] = False
    masks: Annotated[
        bool,
        Option("--masks", help="Masks stage by stage instead (SegViT, SED); --layer counts them, the last is the end."),
    ] = False
    interpolation: Annotated[str, Option(help="From patches to pixels: nearest or bilinear.")] = "nearest"
    colours: Annotated[
        str | None,
        Option(help="From 0 to the maximum of each map (own) or of all (shared), or to 1 (unit: default of --masks)."),
    ] = None
    overlays: Annotated[bool, Option("--overlays", help="Also each map over the photo in the photo's resolution.")] = (
        False
    )

    def __post_init__(self) -> None:
        assert self.choice  # refuses what is impossible

    @cached_property
    def choice(self) -> Choice:
        """The options, read."""
        return Choice.of(self)

    @property
    def variant(self) -> str:
        """Whose attention, and what is made of it."""
        made = {"rollout": self.rollout, "mask": self.masks}
        return "-".join([self.choice.part, *(word for word, is_made in made.items() if is_made)])

    def settings(self, run: SavedRun | Run) -> Mapping[str, Any]:
        """The options, read."""
        return asdict(self.choice)

    def quantities(self, measured: Mapping[str, Any]) -> list[Quantity]:
        """Means over the maps of a layer, of all photos, classes or patches, and heads."""
        shown = (
            ("entropy_share", "entropy (% of ln N)", 100.0),
            ("in_region", "in region (%)", 100.0),
            ("maximum", "maximum", 1.0),
        )
        maps = [each for photo in measured["photos"] for each in photo["maps"]]
        found = []
        for key, title, factor in shown:
            for index, layer in enumerate(dict.fromkeys(each["layer"] for each in maps)):
                known = [each["numbers"].get(key) for each in maps if each["layer"] == layer]
                values = [value for value in known if value is not None and value == value]
                if values:
                    stored = {"value": sum(values) / len(values), "low": None, "high": None}
                    found.append(Quantity(title, layer, index, stored, factor))
        return found

    def measure(self, run: Run, consumed: Photos, advance: Progress) -> Answer:
        """The chosen maps over each photo.

        Raises:
            ConfigError: an unknown layer, head, class or patch.
            DataError: a photo cannot be read.
            ModelError: what is drawn is not finite.
        """
        from analysis.measures.maps import maps_of_photos

        shows, photos, notes = maps_of_photos(run, consumed.paths, self.choice, advance)
        measured = {
            "shows": shows,
            "conventions": self.choice.conventions(shows, run.inference.topk),
            "photos": photos,
            "classes": list(run.model.classes),
            "palette": [list(colour) for colour in run.model.palette],
            "notes": notes,
        }
        return Answer(measured=measured, n=1)  # each number is of one photo


@dataclass(frozen=True)
class Choice:
    """Which maps, and how they are drawn.

    Attributes:
        part: ``decoder`` or ``encoder``.
        layer: index from 0 among the layers that have such rows; ``"all"``; None: the last.
        head: index from 0, ``"mean"`` or ``"all"``.
        classes: names; empty in a decoder without ``patches``: the classes predicted most in each photo.
        patches: (row, column) from 0.
        cls: the class token of an encoder; also where an encoder has no ``patches`` named.
        masks: the masks of attention-to-mask instead of attention; ``layer`` counts stages, and last their sum.
        interpolation: ``nearest`` or ``bilinear``.
        colours: from 0 to each map's maximum (``own``), to the largest of all maps of a figure (``shared``), to 1
            (``unit``).
        overlays: also each map over the photo at the photo's own resolution, to its maximum (``unit``: to 1).
    """

    part: str = "decoder"
    layer: int | str | None = None
    head: int | str = "mean"
    classes: tuple[str, ...] = ()
    patches: tuple[tuple[int, int], ...] = ()
    cls: bool = False
    rollout: bool = False
    masks: bool = False
    interpolation: str = "nearest"
    colours: str = "own"
    overlays: bool = False

    @staticmethod
    def of(options: Attention) -> Choice:
        """From what stands on a command line.

        Raises:
            ConfigError: something is not of the kind that is needed, or does not go together.
        """
        layer, head, classes, masks = options.layer, options.head, options.classes, options.masks
        if not options.part and classes is not None:
            raise ConfigError(
                "--classes goes with --decoder-layers: an encoder has no class embeddings; use --patch or --cls."
            )
        if options.part and options.cls:
            raise ConfigError(
                "--cls goes with --encoder-layers: a decoder has class embeddings instead; use --classes."
            )
        if options.rollout and head not in (None, "mean"):
            raise ConfigError(f"--head {head} does not go with --rollout, which averages heads: leave it out.")
        for option, given in (
            ("encoder-layers", not options.part),
            ("patch", options.patch),
            ("head", head is not None),
            ("rollout", options.rollout),
        ):
            if masks and given:
                raise ConfigError(
                    f"--{option} does not go with --masks, which a decoder has of classes, averaged over heads."
                )
        colours = options.colours or ("unit" if masks else "own")
        for option, value, known in (
            ("interpolation", options.interpolation, ("nearest", "bilinear")),
            ("colours", colours, ("own", "shared", "unit")),
        ):
            if value not in known:
                raise ConfigError(f"--{option} {value!r} is unknown: choose {' or '.join(known)}.")
        names = listed(classes or "")
        if classes is not None and not names:
            raise ConfigError("--classes is empty: name classes with commas between them, --classes car,road.")
        return Choice(
            part="decoder" if options.part else "encoder",
            layer=None if layer is None else _index("layer", layer, ("all",)),
            head="mean" if head is None else _index("head", head, ("all", "mean")),
            classes=names,
            patches=tuple(_place(patch) for patch in options.patch or ()),
            cls=options.cls,
            rollout=options.rollout,
            masks=masks,
            interpolation=options.interpolation,
            colours=colours,
            overlays=options.overlays,
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """What the rows belong to."""
        asked = {"class": bool(self.classes), "patch": bool(self.patches), "cls": self.cls}
        default = "class" if self.part == "decoder" else "cls"
        return tuple(kind for kind, is_asked in asked.items() if is_asked) or (default,)

    def conventions(self, shows: str, topk: int | None = None) -> str:
        """All of it in words, for captions; ``shows``: ``attention``, ``mask``, ``class map`` or ``membership``.

        ``topk``: of early rejection; None: there is none.
        """
        weights = {"mean": "mean over heads", "all": "each head"}.get(str(self.head), f"head {self.head}")
        weights = f"attention, {weights}; softmax weights as they are"
        if self.rollout:
            weights = (
                "attention, rollout: heads averaged, A' = (A + I)/2, product over layers from the first to the "
                "one named"
            )
        if shows == "mask":
            weights = (
                "masks of attention-to-mask: sigmoid of the attention logits averaged over heads, of a stage's "
                "last layer; sum of stages: their logits added up, which is the decoder's mask"
            )
        if shows == "class map":
            weights = (
                "maps of classes: cost is the cosine of places and names, mean over templates, 0 where it is below; "
                "layers.l is the sigmoid of what is said before layer l, last that of the masks"
            )
        if topk is not None:
            weights += f"; early rejection keeps the {topk} best classes of a place, others are 0"
        if shows == "membership":
            weights = "memberships, a map a head: softmax over heads of each patch, as it is"
        colours = {
            "own": "0 to the map's maximum",
            "shared": "0 to the largest value of all maps",
            "unit": "0 to 1",
        }[self.colours]
        return (
            f"{self.part} {weights}; one forward pass over the whole photo; "
            f"{self.interpolation} interpolation from patches to pixels; colours from {colours}."
        )


def _index(option: str, text: str, words: Sequence[str]) -> int | str:
    if text in words:
        return text
    if not text.isascii() or not text.isdigit():
        raise ConfigError(f"--{option} {text!r} is impossible: give a number from 0, or {' or '.join(words)}.")
    return int(text)


def _place(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", text, re.ASCII)
    if match is None:
        raise ConfigError(f"--patch {text!r} is impossible: give row and column of a patch from 0, --patch 3,21.")
    return int(match[1]), int(match[2])
