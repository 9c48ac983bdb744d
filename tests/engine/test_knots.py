"""Labels found from a few pixels are those of all pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from whitebox.engine import assembly
from whitebox.engine.assembly import ScoreView, View, WindowedPhoto
from whitebox.engine.knots import Knots, labels_between, worthwhile
from whitebox.engine.windows import anchors

CLASSES, PATCH = 40, 16


def seen(masks: Tensor, shape: tuple[int, int], size: tuple[int, int], window: int, stride: int, flipped=False):
    """A photo whose windows a model has seen; masks (K, a, b), of other classes in each window."""
    view = View(size, flipped, window, stride)
    for number in range(len(view.tops) * len(view.lefts)):
        view.receive(number, masks.roll(number, 0), None, PATCH, shape)
    photo = WindowedPhoto(iter(()), shape)
    photo.views = [view]
    return photo


def regions(places: int, seed: int = 0) -> Tensor:
    """Masks with regions of one class, (K, places, places)."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, CLASSES, 4, 4, generator=random)
    return F.interpolate(coarse, places, mode="bicubic")[0] + 0.05 * torch.randn(
        CLASSES, places, places, generator=random
    )


def from_all_pixels(photo: WindowedPhoto) -> Tensor:
    return photo.probabilities().argmax(0)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(
    ("shape", "size", "window", "stride"),
    [
        ((128, 128), (128, 128), 128, 128),
        ((128, 200), (128, 200), 128, 128),  # windows overlap: their logits have bends in other places, and jumps
        ((150, 128), (150, 128), 128, 50),
        ((333, 411), (128, 158), 128, 100),  # enlarged
        ((120, 150), (128, 160), 128, 128),  # made smaller, by a little
    ],
)
def test_labels_are_those_of_all_pixels(shape, size, window, stride, flipped, monkeypatch):
    monkeypatch.setattr("whitebox.engine.knots._FEW_PIXELS", 1)
    photo = seen(regions(window // PATCH), shape, size, window, stride, flipped)
    for dtype in (torch.uint8, torch.int64):
        found = photo.views[0].labels(dtype)
        assert found is not None and found.dtype == dtype
        assert torch.equal(found.long(), from_all_pixels(photo))
        assert torch.equal(photo.labels(dtype), found)


def test_knots_of_one_window_lie_half_a_pixel_beside_the_middle_of_patches():
    matrix_Pn = assembly._upsampling(48, 3, PATCH)
    knots = Knots(matrix_Pn)
    assert knots.first.tolist() == [0, 8, 24, 40] and knots.length.tolist() == [8, 16, 16, 8]
    torch.testing.assert_close(knots.matrix_kn, torch.eye(3))
    assert knots.left.tolist() == [0, 0, 1, 2] and knots.right.tolist() == [0, 1, 2, 2]
    assert np.allclose(knots.place_P[8:24], (np.arange(16) + 0.5) / 16)


def test_neighbours_share_no_knot_where_logits_jump():
    ramp = torch.linspace(0, 1, 8)
    matrix_Pn = torch.cat([torch.stack([1 - ramp, ramp], 1), torch.tensor([[1.0, 0.0]]).expand(4, 2)])
    knots = Knots(matrix_Pn)
    assert knots.first.tolist() == [0, 8] and knots.left.tolist() == [0, 2] and knots.right.tolist() == [1, 2]
    half = float(ramp[1]) / 2
    expected = torch.tensor([[1 + half, -half], [-half, 1 + half], [1, 0]])
    torch.testing.assert_close(knots.matrix_kn, expected)


@pytest.mark.parametrize("pixels", [1, 2, 3])
def test_sides_of_few_pixels(pixels):
    matrix_Pn = torch.rand(pixels, 4)
    knots = Knots(matrix_Pn)
    assert knots.length.sum() == pixels
    ends_P2n = torch.stack([knots.matrix_kn[ends[knots.piece_P]] for ends in (knots.left, knots.right)], 1)
    place_P1 = torch.from_numpy(knots.place_P)[:, None]
    torch.testing.assert_close(torch.lerp(ends_P2n[:, 0], ends_P2n[:, 1], place_P1), matrix_Pn)


def test_a_class_that_is_the_largest_only_between_two_others_is_found():
    knots = Knots(assembly._upsampling(32, 2, PATCH))
    corners = torch.tensor([[3.0, 0.0, 2.0], [0.0, 3.0, 2.0]]).expand(2, 2, 3).contiguous()
    found = labels_between(corners, knots, knots, torch.int64)
    assert found is not None
    # Of 16 pixels between the middles of two patches, these lie between a third and two thirds of the way.
    assert found.eq(torch.tensor([0] * 13 + [2] * 6 + [1] * 13)).all()


def test_of_equals_the_first_class_counts():
    knots = Knots(assembly._upsampling(48, 3, PATCH))
    logits = torch.zeros(3, 3, 5)
    logits[..., 2:4] = 1.0
    found = labels_between(logits, knots, knots, torch.int64)
    assert found is not None and found.eq(2).all()


def test_where_most_patches_differ_all_pixels_are_computed():
    photo = seen(torch.randn(CLASSES, 8, 8), (128, 128), (128, 128), 128, 128)
    assert photo.views[0].labels(torch.int64) is None
    assert torch.equal(photo.labels(), from_all_pixels(photo))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_end(value):
    masks = regions(8)
    masks[3, 2:4, 5] = value
    photo = seen(masks, (128, 128), (128, 128), 128, 128)
    assert photo.views[0].labels(torch.int64) is not None
    masks[:] = value
    assert seen(masks, (128, 128), (128, 128), 128, 128).labels().eq(0).all()


def test_not_where_there_are_about_as_many_knots_as_pixels_or_too_many_to_hold():
    rough, fine = (len(Knots(assembly._upsampling(128, count, 128 // count)).matrix_kn) ** 2 for count in (8, 64))
    assert worthwhile(128**2, rough, 150) and not worthwhile(128**2, fine, 150)
    assert not worthwhile(128**2, rough, 2**21)


def test_of_logits_at_each_pixel_no_knots_are_sought(monkeypatch):
    """They would be made of a matrix of all pixels and all logits: GBs of a large photo."""
    monkeypatch.setattr(assembly, "Knots", None)
    view = View((128, 200), False, 128, 128)
    for number in range(2):
        view.receive(number, torch.randn(CLASSES, 128, 128), None, 1, (128, 200))
    assert view.labels(torch.int64) is None
    assert view.columns.taps.place_Pt.shape == (200, 8)  # two pixels of the view, in two windows, between two logits


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(
    ("places", "stride", "pixels"), [((3, 16), 48, 130), ((4, 14), 30, 61), ((48, 1), 20, 333), ((48, 1), 20, 31)]
)
def test_shares_along_a_side(places, stride, pixels, flipped):
    """Upsampled in each window, averaged over windows, resized, mirrored: as matrices of all logits say it."""
    window, length, starts = 48, 120, anchors(120, 48, stride)
    count, patch = places
    upsampled = F.interpolate(torch.eye(count)[None], count * patch, mode="linear")[0, :, :window]
    view = torch.zeros(len(starts), count, length)
    for number, start in enumerate(starts):
        view[number, :, start : start + window] = upsampled
    averaged = view / (view.sum(1) > 0).sum(0)
    expected = F.interpolate(averaged.flatten(0, 1)[None], pixels, mode="linear")[0].T
    expected = expected.flip(0) if flipped else expected
    axis = assembly._Axis(starts, window, places, length, pixels, flipped)
    for part in (slice(0, pixels), slice(20, 31)):
        shares, used = axis.part(part)
        found = torch.zeros(part.stop - part.start, len(expected.T))
        found[:, used] = shares
        torch.testing.assert_close(found[:, axis.place_n], expected[part], atol=1e-6, rtol=0)
    taken = (expected != 0)[:, axis.place_n.argsort()]
    first = torch.where(taken.any(0), taken.int().argmax(0), pixels)
    assert (first.diff() >= 0).all()  # logits are in order of the first pixel that takes from them; the rest come last


def test_not_of_scores():
    view = ScoreView((128, 128), False, 128, 128)
    assert view.labels(torch.int64) is None
