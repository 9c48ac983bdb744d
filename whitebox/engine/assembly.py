"""What a model says of windows, assembled into probabilities or labels of the photo they were cut from.

Everything between a model's masks and the softmax is linear and acts on rows and columns separately: upsampling from
patches, the average over windows (which form a grid), resizing, mirroring. So it is two matrices, one for rows and one
for columns, kept as a few shares a pixel; their parts are applied tile by tile, classes last, and nothing of full size
is held but the result. On a processor, where there are many classes, the labels of a single view need few of the
pixels, see ``whitebox.engine.knots``.

A model that gives scores (SegViT) makes them of its upsampled masks, which is not linear; their average over windows
and what follows is. So its scores are made row by row, where a tile needs them, and from there it is as above. Scores
are no logits: the probabilities of a view are each score's share of their sum. The released code takes their softmax
instead (``inference.scores=softmax``); as scores lie between 0 and about 1 that is nearly flat, and a view that is sure
counts little more than one that is not. The labels of a single view are the same either way.

A model whose masks are independent (SED) makes probabilities of them by the sigmoid first, and those are resized. Where
it squashes what it is shown to a square, its masks show the whole view, and are resized to the photo at once.

Shapes: B windows, C colours, K classes, H W pixels of the original image, h w of the resized one, v u of a window and
a b its mask logits, m n mask logits along rows and columns (those of all windows side by side), R S rows and columns of
a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from whitebox.engine.knots import Floats, Ints, Knots, labels_between, worthwhile
from whitebox.engine.windows import Image, anchors, enlarge
from whitebox.errors import ConfigError
from whitebox.models import Segmentor
from whitebox.models.decoders.base import class_scores
from whitebox.models.precision import full_precision

# Logits of a tile, and its columns. A processor wants it in its cache (1 MB a thread) and few columns, so that few
# patches matter to it; a GPU wants large kernels (256 MB).
ON_CPU, ELSEWHERE = (2**18, 64), (2**26, 512)

MANY_CLASSES = 32  # from here on a processor finds the largest logit faster along classes than class after class


OnTile = Callable[[slice, slice, Tensor], None]


class View:
    """One resized, maybe mirrored version of a photo: where its windows are, and their mask logits side by side."""

    def __init__(self, size: tuple[int, ...], flipped: bool, window: int | None, stride: int | None) -> None:
        """``window``, ``stride``: px; None: one window of the view's own size."""
        self.size, self.flipped = size, flipped
        self.window = size if window is None else (window, window)
        self.tops, self.lefts = (
            anchors(length, side, stride or side) for length, side in zip(size, self.window, strict=True)
        )
        self.masks_mnK = torch.empty(0)
        self.padded = 0, 0  # mask logits of a window, along rows and columns

    def receive(
        self, number: int, masks_Kab: Tensor, shares_KK: Tensor | None, patch: int, shape: tuple[int, ...]
    ) -> None:
        """What a model says of one window, see ``Prediction``; ``shape`` is that of the photo."""
        K, a, b = masks_Kab.shape
        if self.masks_mnK.numel() == 0:
            places = (len(self.tops) * a, len(self.lefts) * b, K)
            self.masks_mnK = torch.empty(places, dtype=torch.float32, device=masks_Kab.device)
            self.padded = a, b
            self.prepare(patch, shape)
        y, x = divmod(number, len(self.lefts))
        rows_a, columns_b = self.places[0][y * a : (y + 1) * a], self.places[1][x * b : (x + 1) * b]
        self.masks_mnK[rows_a[:, None], columns_b] = masks_Kab.permute(1, 2, 0).float()

    def prepare(self, patch: int, shape: tuple[int, ...]) -> None:
        (v, u), (a, b) = self.window, self.padded
        self.rows = _axis(tuple(self.tops), v, (a, patch), self.size[0], shape[0], False)
        self.columns = _axis(tuple(self.lefts), u, (b, patch), self.size[1], shape[1], self.flipped)
        self.places = self.rows.place_n, self.columns.place_n

    def strip(self, rows: slice) -> Tensor:
        """Logits of some rows of the photo, not yet resized along the columns: (R, n, K)."""
        part_Rm, used = self.rows.part(rows)
        return (part_Rm.to(self.masks_mnK) @ self.masks_mnK[used].flatten(1)).unflatten(1, self.masks_mnK.shape[1:])

    def labels(self, dtype: torch.dtype) -> Tensor | None:
        """The most probable class by this view alone, (H, W); None where that is found as fast from all pixels."""
        K = self.masks_mnK.shape[2]
        if self.masks_mnK.device.type != "cpu" or K < MANY_CLASSES:
            return None
        pixels = len(self.rows.first) * len(self.columns.first)
        if not worthwhile(pixels, self.rows.fewest_knots * self.columns.fewest_knots, K):
            return None
        rows, columns = self.rows.knots, self.columns.knots
        if not worthwhile(pixels, len(rows.matrix_kn) * len(columns.matrix_kn), K):
            return None
        rows_JnK = (rows.matrix_kn @ self.masks_mnK.flatten(1)).unflatten(1, self.masks_mnK.shape[1:])
        return labels_between(columns.matrix_kn @ rows_JnK, rows, columns, dtype)


class ScoreView(View):
    """A view of a model that gives scores."""

    def prepare(self, patch: int, shape: tuple[int, ...]) -> None:
        self.upsampling_va, self.upsampling_ub = (
            _upsampling(side, count, patch).to(self.masks_mnK)
            for side, count in zip(self.window, self.padded, strict=True)
        )
        self.shares: dict[int, Tensor] = {}  # (K, K) of each window
        self.rows = _of_pixels(self.size[0], shape[0], False)  # of the photo, in pixels of the view
        self.columns = _of_pixels(self.size[1], shape[1], self.flipped)
        m, n = self.masks_mnK.shape[:2]
        self.places = torch.arange(m), torch.arange(n)  # window by window

    def receive(
        self, number: int, masks_Kab: Tensor, shares_KK: Tensor | None, patch: int, shape: tuple[int, ...]
    ) -> None:
        super().receive(number, masks_Kab, shares_KK, patch, shape)
        assert shares_KK is not None
        self.shares[number] = shares_KK

    def strip(self, rows: slice) -> Tensor:
        """Scores of some rows of the photo, not yet resized along the columns: (R, w, K)."""
        part_Rh, used = self.rows.part(rows)
        scores_hwK = self.scores(used)
        return (part_Rh.to(scores_hwK) @ scores_hwK.flatten(1)).unflatten(1, scores_hwK.shape[1:])

    def labels(self, dtype: torch.dtype) -> None:
        """Scores are made of upsampled masks, and are not linear between patches."""

    def scores(self, rows: slice) -> Tensor:
        """Scores of some rows of the view, averaged over windows: (h, w, K)."""
        a, b = self.upsampling_va.shape[1], self.upsampling_ub.shape[1]
        total_hwK = self.masks_mnK.new_zeros(rows.stop - rows.start, self.size[1], self.masks_mnK.shape[2])
        windows_hw1 = total_hwK.new_zeros(*total_hwK.shape[:2], 1)
        for number, shares_KK in self.shares.items():
            y, x = divmod(number, len(self.lefts))
            top, left = self.tops[y], self.lefts[x]
            first, last = max(rows.start, top), min(rows.stop, top + self.window[0])
            if first < last:
                masks_abK = self.masks_mnK[y * a : (y + 1) * a, x * b : (x + 1) * b]
                part_hbK = (self.upsampling_va[first - top : last - top] @ masks_abK.flatten(1)).unflatten(1, (b, -1))
                place = slice(first - rows.start, last - rows.start), slice(left, left + self.window[1])
                total_hwK[place] += class_scores(self.upsampling_ub @ part_hbK, shares_KK)
                windows_hw1[place] += 1
        return total_hwK / windows_hw1


class _IndependentView(View):
    """A view of a model whose masks are independent of each other: their sigmoid is a probability."""

    def receive(
        self, number: int, masks_Kab: Tensor, shares_KK: Tensor | None, patch: int, shape: tuple[int, ...]
    ) -> None:
        super().receive(number, masks_Kab.float().sigmoid(), None, patch, shape)

    def prepare(self, patch: int, shape: tuple[int, ...]) -> None:
        if patch:
            return super().prepare(patch, shape)
        if len(self.tops) * len(self.lefts) > 1:
            raise ConfigError(
                f"This model squashes what it sees to a square, and {self.size[0]} x {self.size[1]} px have several "
                f"windows of {self.window[0]} px: set inference.window=null."
            )
        self.rows = _of_pixels(self.padded[0], shape[0], False)
        self.columns = _of_pixels(self.padded[1], shape[1], self.flipped)
        self.places = self.rows.place_n, self.columns.place_n


@dataclass(frozen=True)
class Kind:
    """How what a model gives becomes class probabilities."""

    view: type[View]
    normalise: Callable[[Tensor, int], Tensor]  # of a view, along the axis of classes


def _softmax(logits: Tensor, dim: int) -> Tensor:
    return logits.softmax(dim)


def _shares(scores: Tensor, dim: int) -> Tensor:
    return scores / scores.sum(dim, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)


def _as_it_is(probabilities: Tensor, dim: int) -> Tensor:
    return probabilities


_LOGITS = Kind(View, _softmax)
_PROBABILITIES = Kind(_IndependentView, _as_it_is)


def kind_of(model: nn.Module, scores: str) -> Kind:
    """How this model's masks become probabilities; ``scores``: see ``inference.scores``."""
    if not isinstance(model, Segmentor):  # an exported one says what its maps at the pixels are
        normalise = {"scores": _softmax if scores == "softmax" else _shares, "probabilities": _as_it_is}
        return Kind(View, normalise.get(getattr(model, "gives", ""), _softmax))
    if model.decoder.independent:
        return _PROBABILITIES
    if not model.decoder.scores:
        return _LOGITS
    return Kind(ScoreView, _softmax if scores == "softmax" else _shares)


class WindowedPhoto:
    """A photo whose windows are on their way through a model."""

    def __init__(self, unseen: Iterator[tuple[Image, bool]], shape: tuple[int, ...], kind: Kind = _LOGITS) -> None:
        self.unseen, self.shape, self.kind = unseen, shape, kind
        self.views: list[View] = []
        self.waiting = 0  # windows whose masks are not known yet
        self.cut = False  # there are no more windows

    def windows(
        self, device: torch.device, window: int | None, stride: int | None
    ) -> Iterator[tuple[View, int, Tensor]]:
        """View, number in it, and pixels (1, C, v, u) in [0, 1]; only one resized image is held at a time."""
        for image_hw3, flipped in self.unseen:
            writable_hw3 = np.require(image_hw3, requirements=["C", "W"])  # what torch takes; a copy where it is not
            image_13hw = torch.from_numpy(writable_hw3).to(device).permute(2, 0, 1)[None]
            if window is not None and min(image_13hw.shape[2:]) < window:
                image_13hw = enlarge(image_13hw.float().div(255), window)
            view = self.kind.view(image_13hw.shape[2:], flipped, window, stride)
            self.views.append(view)
            height, width = view.window
            for number, (y, x) in enumerate((top, left) for top in view.tops for left in view.lefts):
                start = view.size[1] - width - x if flipped else x  # windows are mirrored, each by itself
                crop_13vu = image_13hw[:, :, y : y + height, start : start + width]
                pixels_13vu = crop_13vu if crop_13vu.is_floating_point() else crop_13vu.float().div(255)
                self.waiting += 1
                yield view, number, pixels_13vu.flip(3) if flipped else pixels_13vu
        self.cut = True

    def forget(self) -> None:
        """Be as if its windows were still on their way: where they are is kept, what a model said of them is not."""
        for view in self.views:
            view.masks_mnK = torch.empty(0)
        self.waiting = sum(len(view.tops) * len(view.lefts) for view in self.views)

    def labels(self, dtype: torch.dtype = torch.int64, on_tile: OnTile | None = None) -> Tensor:
        """The most probable class, (H, W).

        Args:
            on_tile: called for each tile with its rows, its columns and the class probabilities there, (K, R, S); the
                probabilities of a photo are never held as a whole.
        """
        device, several = self.views[0].masks_mnK.device, len(self.views) > 1
        with full_precision(device):
            if not several and on_tile is None and (found_HW := self.views[0].labels(dtype)) is not None:
                return found_HW
            label_HW = torch.empty(self.shape, dtype=dtype, device=device)
            for rows, columns, block_RSK in self._tiles(normalised=several):
                label_HW[rows, columns] = largest_class(block_RSK)
                if on_tile is not None:
                    on_tile(rows, columns, self._planes(block_RSK, normalised=several))
        return label_HW

    def _planes(self, block_RSK: Tensor, normalised: bool) -> Tensor:
        """Probabilities of a tile, (K, R, S), of a block that holds them already or not."""
        planes_KRS = block_RSK.permute(2, 0, 1)
        if normalised:
            return planes_KRS
        if planes_KRS.is_contiguous():  # a fifteenth of the time, for few classes on a processor
            return self.kind.normalise(planes_KRS, 0)
        return self.kind.normalise(block_RSK, 2).permute(2, 0, 1)

    def probabilities(self) -> Tensor:
        """Their mean over the views, (K, H, W) float32."""
        masks_mnK = self.views[0].masks_mnK
        result_KHW = masks_mnK.new_empty((masks_mnK.shape[2], *self.shape))
        with full_precision(masks_mnK.device):
            for rows, columns, block_RSK in self._tiles(normalised=True):
                result_KHW[:, rows, columns] = block_RSK.permute(2, 0, 1)
        return result_KHW

    def _tiles(self, normalised: bool) -> Iterator[tuple[slice, slice, Tensor]]:
        """Rows, columns, and mean probabilities there (R, S, K); or, of a single view, logits or scores."""
        device, K = self.views[0].masks_mnK.device, self.views[0].masks_mnK.shape[2]
        size, width = (ON_CPU[0] * torch.get_num_threads(), ON_CPU[1]) if device.type == "cpu" else ELSEWHERE
        all_columns = list(_slices(self.shape[1], width))
        parts = [[view.columns.part(columns) for columns in all_columns] for view in self.views]
        parts = [[(part_Sn.to(device), used) for part_Sn, used in of_view] for of_view in parts]
        for rows in _slices(self.shape[0], max(1, size // (K * min(width, self.shape[1])))):
            strips = [view.strip(rows) for view in self.views]
            for place, columns in enumerate(all_columns):
                total_RSK = torch.empty(0)
                for strip_RnK, of_view in zip(strips, parts, strict=True):
                    part_Sn, used = of_view[place]
                    block_RSK = _columns(part_Sn, strip_RnK[:, used])
                    block_RSK = self.kind.normalise(block_RSK, 2) if normalised else block_RSK
                    total_RSK = total_RSK.add_(block_RSK) if total_RSK.numel() else block_RSK
                yield rows, columns, total_RSK.div_(len(self.views)) if len(self.views) > 1 else total_RSK


class _Taps(NamedTuple):
    """What each pixel along a side takes: shares of t values along that side, of which some may be 0."""

    place_Pt: Ints
    share_Pt: Floats

    def through(self, before: _Taps) -> _Taps:
        """Taps of what those values are made of themselves."""
        P = len(self.place_Pt)
        share_Ptt = self.share_Pt[:, :, None] * before.share_Pt[self.place_Pt]
        return _Taps(before.place_Pt[self.place_Pt].reshape(P, -1), share_Ptt.reshape(P, -1))

    def matrix(self, values: slice) -> Tensor:
        """Shares of some of the values, of which these pixels take nothing else: (P, values)."""
        place_Pt = np.where(self.share_Pt != 0, self.place_Pt, values.start) - values.start
        matrix_Pn = torch.zeros(len(place_Pt), values.stop - values.start)
        return matrix_Pn.scatter_add_(1, torch.from_numpy(place_Pt), torch.from_numpy(self.share_Pt))


def _resized(values: int, pixels: int) -> _Taps:
    """What ``F.interpolate(mode="linear")`` makes ``pixels`` of ``values`` with, in float32 as it does."""
    scale = float(np.float32(values) / np.float32(pixels))
    x_P = (scale * (np.arange(pixels) + 0.5) - 0.5).clip(0).astype(np.float32)  # rounded once, as by its fused sum
    low_P = np.minimum(x_P.astype(np.int64), values - 1)
    high_P = np.minimum(low_P + 1, values - 1)
    upper_P = x_P - low_P.astype(np.float32)
    return _Taps(np.stack((low_P, high_P), 1), np.stack((1 - upper_P, upper_P), 1))


class _Axis:
    """What each pixel along one side of the photo takes from the mask logits along that side of a view.

    The logits of several windows are in order of the first pixel that takes from them, also where windows overlap: a
    few pixels side by side take from a few logits side by side. There may be as many of both as a photo has pixels, so
    a matrix is only made of a part.

    Attributes:
        place_n: where each logit is among them, in order of windows.
    """

    def __init__(
        self, starts: list[int], window: int, places: tuple[int, int], length: int, pixels: int, flipped: bool
    ) -> None:
        """Windows at ``starts`` of a view ``length`` px long, of a photo that is ``pixels`` px long.

        ``places``: how many logits a window has, and px between them.
        """
        count, patch = places
        within = _resized(count, count * patch)
        covered_l = np.zeros(length, np.int64)
        for start in starts:
            covered_l[start : start + window] += 1
        self.overlap = int(covered_l.max())
        place_lst = np.zeros((length, self.overlap, 2), np.int64)
        share_lst = np.zeros((length, self.overlap, 2), np.float32)
        others_l = np.zeros(length, np.int64)  # windows before that cover a pixel
        for number, start in enumerate(starts):
            here = np.arange(start, start + window)
            place_lst[here, others_l[here]] = within.place_Pt[:window] + number * count
            share_lst[here, others_l[here]] = within.share_Pt[:window] / covered_l[here, None]
            others_l[here] += 1
        view = _Taps(place_lst.reshape(length, -1), share_lst.reshape(length, -1))
        place_Pt, share_Pt = _resized(length, pixels).through(view)
        if flipped:
            place_Pt, share_Pt = place_Pt[::-1], share_Pt[::-1].copy()

        order_n = np.arange(len(starts) * count)  # of one window side by side as they are, also mirrored
        if len(starts) > 1:
            first_n = np.full(len(order_n), pixels)
            np.minimum.at(first_n, place_Pt, np.where(share_Pt != 0, np.arange(pixels)[:, None], pixels))
            order_n = first_n.argsort(kind="stable")  # those that no pixel takes come last
        place_n = order_n.argsort()
        self.place_n = torch.from_numpy(place_n)
        self.taps = _Taps(place_n[place_Pt], share_Pt)
        self.first = np.where(share_Pt != 0, self.taps.place_Pt, len(place_n)).min(1)
        self.last = np.where(share_Pt != 0, self.taps.place_Pt, -1).max(1) + 1

    @property
    def fewest_knots(self) -> float:
        """There will be no fewer; known before the matrix of all pixels is made for them."""
        return min(len(self.place_n) / self.overlap, len(self.first) / 2)

    @cached_property
    def knots(self) -> Knots:
        """Where logits bend between these pixels."""
        return Knots(self.taps.matrix(slice(0, len(self.place_n))))

    def part(self, pixels: slice) -> tuple[Tensor, slice]:
        """The matrix of these pixels, without outer columns of zeros; which logits the columns are."""
        used = slice(int(self.first[pixels].min()), int(self.last[pixels].max()))
        return _Taps(self.taps.place_Pt[pixels], self.taps.share_Pt[pixels]).matrix(used), used


@lru_cache(maxsize=16)
def _axis(
    starts: tuple[int, ...], window: int, places: tuple[int, int], length: int, pixels: int, flipped: bool
) -> _Axis:
    """An `_Axis`; many photos of a dataset have the same size."""
    return _Axis(list(starts), window, places, length, pixels, flipped)


def _of_pixels(length: int, pixels: int, flipped: bool) -> _Axis:
    """An axis of values side by side, ``length`` of them, over a photo that is ``pixels`` px long."""
    return _axis((0,), length, (length, 1), length, pixels, flipped)


def _upsampling(window: int, count: int, patch: int) -> Tensor:
    """Shares of ``count`` patches along one side of a window, padding included, in its pixels, (pixels, patches)."""
    return _resized(count, count * patch).matrix(slice(0, count))[:window]


def _columns(part_Sn: Tensor, strip_RnK: Tensor) -> Tensor:
    """Rows of logits resized along the columns, (R, S, K); in memory class after class where these are few."""
    R, n, K = strip_RnK.shape
    if strip_RnK.device.type != "cpu" or K >= MANY_CLASSES:
        return torch.bmm(part_Sn.expand(R, -1, -1), strip_RnK)
    block_KRS = (strip_RnK.permute(2, 0, 1).reshape(K * R, n) @ part_Sn.T).unflatten(0, (K, R))
    return block_KRS.permute(1, 2, 0)


def largest_class(block_RSK: Tensor) -> Tensor:
    """Index of the largest along K, the first of equals: ``argmax(2)``, in a third of PyTorch's time on a processor."""
    if block_RSK.device.type != "cpu":
        return block_RSK.argmax(2)
    if block_RSK.shape[2] >= MANY_CLASSES:
        return torch.from_numpy(block_RSK.numpy().argmax(2))
    planes_KRS = block_RSK.permute(2, 0, 1).numpy()
    best_RS, index_RS = planes_KRS[0].copy(), np.zeros(planes_KRS.shape[1:], np.uint8)
    for number, plane_RS in enumerate(planes_KRS[1:], start=1):
        np.maximum(index_RS, (plane_RS > best_RS) * np.uint8(number), out=index_RS)
        np.maximum(best_RS, plane_RS, out=best_RS)
    return torch.from_numpy(index_RS)


def _slices(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
