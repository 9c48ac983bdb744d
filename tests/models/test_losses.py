"""Losses: analytic cases, sums that may be taken in parts, and what an ignored pixel does."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from whitebox.models.cross_entropy import summed_cross_entropy
from whitebox.models.decoders.base import Prediction
from whitebox.models.losses import ATMLoss, CrossEntropy, DiceCrossEntropy, Loss, present_classes, sigmoid_focal


def case(B: int = 3, K: int = 4, stages: int = 2) -> tuple[Prediction, Tensor]:
    """Predictions of a 2 x 3 grid with patches of 4 px, for images that lack two rows of pixels."""
    generator = torch.Generator().manual_seed(0)
    said = [
        Prediction(torch.randn(B, K, 2, 3, generator=generator) * 2, torch.randn(B, K, K + 1, generator=generator))
        for _ in range(stages)
    ]
    labels = torch.randint(0, K - 1, (B, 6, 12), dtype=torch.uint8, generator=generator)
    labels[:, 1:3, 2:9] = 255
    return Prediction(said[0].masks_BKhw, said[0].classes_BKC, tuple(said[1:])), labels


def part(prediction: Prediction, images: slice) -> Prediction:
    earlier = tuple(part(each, images) for each in prediction.earlier)
    classes = None if prediction.classes_BKC is None else prediction.classes_BKC[images]
    return Prediction(prediction.masks_BKhw[images], classes, earlier)


def value(loss: Loss, prediction: Prediction, labels: Tensor) -> Tensor:
    counts = loss.counts(labels, prediction.masks_BKhw.shape[1])
    return loss.mean(loss(prediction, labels, 4), counts)


WEIGHTS = [1.0, 0.0, 2.5, 0.25]


@pytest.mark.parametrize(
    "loss",
    [
        ATMLoss(),
        ATMLoss(ignore="mask"),
        CrossEntropy(),
        CrossEntropy(WEIGHTS),
        DiceCrossEntropy(CrossEntropy(), 0.5),
        DiceCrossEntropy(CrossEntropy(WEIGHTS), 2.0),
    ],
)
def test_parts_of_a_batch_add_up(loss: Loss) -> None:
    prediction, labels = case()
    labels[1] = 255  # an image without a label
    parts = [slice(0, 1), slice(1, 3)]
    counts = [sum(each) for each in zip(*(loss.counts(labels[images], 4) for images in parts), strict=True)]
    assert counts == loss.counts(labels, 4)
    split = sum(loss.mean(loss(part(prediction, images), labels[images], 4), counts) for images in parts)
    torch.testing.assert_close(split, value(loss, prediction, labels))


def test_counts_of_no_image() -> None:
    """What a process counts that could not read its images."""
    nothing = torch.empty(0, 0, 0, dtype=torch.uint8)
    assert CrossEntropy().counts(nothing, 4) == [0]
    assert DiceCrossEntropy(CrossEntropy(WEIGHTS), 1).counts(nothing, 4) == [0, 0, 0, 0, 0]
    assert ATMLoss().counts(nothing, 4) == [0, 0]


def test_class_weights_are_those_of_torch() -> None:
    """In value and gradient, for masks and for scores; the mean is over the weights of the labelled pixels."""
    (masks, classes), labels = plain_case()
    large = F.interpolate(masks, size=(8, 12), mode="bilinear")[:, :, :6]
    target = labels.long()
    expected = F.cross_entropy(large, target, torch.tensor(WEIGHTS), ignore_index=255)
    found = value(CrossEntropy(WEIGHTS), Prediction(masks), labels)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(each, masks)[0] for each in (found, expected))
    torch.testing.assert_close(ours, theirs)

    said = Prediction(masks, classes)
    scores = torch.einsum("bkhw,bkc->bchw", large.sigmoid(), classes.softmax(-1)[..., :-1])
    shares = (scores / scores.sum(1, keepdim=True)).log()
    expected = F.nll_loss(shares, target, torch.tensor(WEIGHTS), ignore_index=255)
    torch.testing.assert_close(value(CrossEntropy(WEIGHTS), said, labels), expected)


def plain_case() -> tuple[tuple[Tensor, Tensor], Tensor]:
    prediction, labels = case()
    assert prediction.classes_BKC is not None
    return (prediction.masks_BKhw.clone().requires_grad_(), prediction.classes_BKC), labels


def test_only_ignored_pixels_and_weightless_classes_give_0() -> None:
    prediction = Prediction(torch.randn(1, 2, 2, 3, generator=torch.Generator().manual_seed(0)))
    nothing = torch.full((1, 6, 12), 255, dtype=torch.uint8)
    assert value(DiceCrossEntropy(CrossEntropy([1.0, 2.0]), 1.0), prediction, nothing) == 0
    assert value(CrossEntropy([0.0, 2.0]), prediction, torch.zeros_like(nothing)) == 0


def test_dice_by_hand() -> None:
    """Flat logits: p = 3/4 everywhere for class 0, which has 40 of the 60 labelled pixels."""
    masks = torch.tensor([math.log(3.0), 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 3).clone().requires_grad_()
    labels = torch.zeros(1, 6, 12, dtype=torch.uint8)
    labels.view(-1)[40:60], labels.view(-1)[60:] = 1, 255
    dice_0 = 1 - (2 * 30 + 1) / (45 + 40 + 1)
    dice_1 = 1 - (2 * 5 + 1) / (15 + 20 + 1)
    entropy = -(40 * math.log(0.75) + 20 * math.log(0.25)) / 60
    found = value(DiceCrossEntropy(CrossEntropy(), 3.0), Prediction(masks), labels)
    assert found.item() == pytest.approx(entropy + 3 * (dice_0 + dice_1) / 2, rel=1e-6)
    found.backward()
    assert masks.grad is not None
    assert masks.grad.abs().sum() > 0
    labels[labels == 1] = 255  # a class that is not there is not asked for: 1 pair instead of 2
    assert DiceCrossEntropy(CrossEntropy(), 3.0).counts(labels, 2) == [1, 40]


def test_atm_by_hand() -> None:
    """One image, one of two classes everywhere, masks flat: each term in closed form."""
    masks = torch.tensor([1.5, -0.5]).view(1, 2, 1, 1).expand(1, 2, 2, 3)
    classes = torch.tensor([[[0.2, -1.0, 0.7], [0.1, 0.4, -0.3]]])
    labels = torch.zeros(1, 8, 12, dtype=torch.uint8)
    loss = ATMLoss()
    assert loss.counts(labels, 2) == [1, 1]
    (found,) = loss(Prediction(masks, classes), labels, 4)
    log_shares = classes[0].log_softmax(-1)
    p = torch.tensor(1.5).sigmoid()
    expected = [
        -log_shares[0, 0] - 0.1 * log_shares[1, 2],  # class 0 is there, class 1 is not
        0.25 * (1 - p) ** 2 * -p.log(),
        1 - (2 * 96 * p + 1) / (96 * p + 96 + 1),
    ]
    torch.testing.assert_close(found, torch.stack(expected))
    total = expected[0] / 1.1 + 20 * expected[1] + expected[2]
    torch.testing.assert_close(value(loss, Prediction(masks, classes), labels), total)


def test_every_stage_counts_the_same() -> None:
    prediction, labels = case(stages=3)
    alone = [prediction, *prediction.earlier]
    terms = [value(ATMLoss(), Prediction(each.masks_BKhw, each.classes_BKC), labels) for each in alone]
    torch.testing.assert_close(value(ATMLoss(), prediction, labels), sum(terms))


def test_ignored_pixels_are_negatives_or_nothing() -> None:
    prediction, labels = case(stages=1)
    other = labels.clone()
    other[labels == 255] = 3  # a class that is nowhere else: negatives of all the others
    present = present_classes(labels, 4)
    assert not present[:, 3].any() and present_classes(other, 4)[:, 3].all()
    sums = ATMLoss()(prediction, labels, 4)[0]
    less = ATMLoss()(part(prediction, slice(None)), other, 4)[0]
    masks = F.interpolate(prediction.masks_BKhw, size=(8, 12), mode="bilinear")[..., :6, :]
    of_3 = sigmoid_focal(masks[:, 3], (other == 3).float()).mean((1, 2)).sum()
    torch.testing.assert_close(less[1] - of_3, sums[1])

    blind = ATMLoss(ignore="mask")(prediction, labels, 4)[0]
    by_hand = sum(
        sigmoid_focal(masks[image, k], (labels[image] == k).float())[labels[image] != 255].mean()
        for image, k in present.nonzero().tolist()
    )
    torch.testing.assert_close(blind[1], by_hand)
    assert blind[0] == sums[0] and not torch.isclose(blind[2], sums[2])
    # masks may be anything where the label is not known
    changed = prediction.masks_BKhw.clone().requires_grad_()
    labels[:] = 255
    labels[:, :, :2] = 1
    ATMLoss(ignore="mask")(Prediction(changed, prediction.classes_BKC), labels, 4).sum().backward()
    assert changed.grad is not None and not changed.grad[..., 2].any() and changed.grad[:, 1, :, 0].all()


def test_a_batch_without_labels() -> None:
    prediction, labels = case(stages=1)
    labels[:] = 255
    masks = prediction.masks_BKhw.clone().requires_grad_()
    given = Prediction(masks, prediction.classes_BKC)
    for ignore in ("negative", "mask"):
        loss = value(ATMLoss(ignore=ignore), given, labels)
        nothing = F.cross_entropy(given.classes_BKC.flatten(0, 1), torch.full((12,), 4))
        torch.testing.assert_close(loss, nothing)
        loss.backward()
        assert masks.grad is not None and not masks.grad.any()  # there, so that processes can average it
    assert value(CrossEntropy(), given, labels).detach() == 0


def test_without_class_logits_masks_of_absent_classes_are_to_be_empty() -> None:
    prediction, labels = case(stages=1)
    bare = Prediction(prediction.masks_BKhw.clone().requires_grad_())
    with_classes, without = (ATMLoss()(each, labels, 4)[0] for each in (prediction, bare))
    absent = ~present_classes(labels, 4)
    assert absent.any() and without[0] == 0
    masks = F.interpolate(prediction.masks_BKhw, size=(8, 12), mode="bilinear")[..., :6, :]
    of_absent = sigmoid_focal(masks, torch.zeros_like(masks)).mean((2, 3))[absent].sum()
    torch.testing.assert_close(without[1], with_classes[1] + of_absent)
    torch.testing.assert_close(without[2], with_classes[2])
    without.sum().backward()
    assert bare.masks_BKhw.grad is not None and bare.masks_BKhw.grad[absent].all()


def test_without_class_logits_an_image_without_labels_asks_for_nothing() -> None:
    prediction, labels = case(stages=1)
    bare = Prediction(prediction.masks_BKhw)
    labels[1:] = 255
    for ignore in ("negative", "mask"):
        loss = ATMLoss(ignore=ignore)
        torch.testing.assert_close(loss(bare, labels, 4), loss(part(bare, slice(0, 1)), labels[:1], 4))


def test_focal_loss() -> None:
    logits, target = torch.randn(50), (torch.rand(50) < 0.3).float()
    plain = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    torch.testing.assert_close(sigmoid_focal(logits, target, alpha=0.5, gamma=0.0), plain / 2)
    sure = sigmoid_focal(torch.tensor([4.0, -4.0]), torch.tensor([1.0, 0.0]))
    p = 1 / (1 + math.exp(-4))
    torch.testing.assert_close(sure, torch.tensor([0.25, 0.75]) * (1 - p) ** 2 * -math.log(p))
    extreme = torch.tensor([90.0, -90.0], requires_grad=True)
    sigmoid_focal(extreme, torch.tensor([0.0, 1.0])).sum().backward()
    assert extreme.grad is not None and extreme.grad.isfinite().all() and extreme.grad.all()


def test_cross_entropy_of_logits_is_the_tail() -> None:
    prediction, labels = case(stages=1)
    bare = Prediction(prediction.masks_BKhw)
    assert CrossEntropy()(bare, labels, 4) == summed_cross_entropy(bare.masks_BKhw, labels, 4)


def test_cross_entropy_of_scores_is_that_of_their_shares() -> None:
    prediction, labels = case()
    masks = F.interpolate(prediction.masks_BKhw, size=(8, 12), mode="bilinear")[..., :6, :]
    scores = torch.einsum("bqk,bqhw->bkhw", prediction.classes_BKC.softmax(-1)[..., :-1], masks.sigmoid())
    expected = F.nll_loss((scores / scores.sum(1, keepdim=True)).log(), labels.long(), ignore_index=255)
    torch.testing.assert_close(value(CrossEntropy(), prediction, labels), expected)


def test_scores_of_nothing_stay_finite() -> None:
    masks = torch.full((1, 2, 1, 1), -200.0, requires_grad=True)
    loss = value(CrossEntropy(), Prediction(masks, torch.zeros(1, 2, 3)), torch.zeros(1, 4, 4, dtype=torch.uint8))
    loss.backward()
    assert loss.isfinite() and masks.grad is not None and masks.grad.isfinite().all()


@pytest.mark.parametrize("loss", [ATMLoss(), CrossEntropy()])
def test_reduced_precision_is_left_before_the_loss(loss: Loss) -> None:
    prediction, labels = case(stages=1)
    half = Prediction(prediction.masks_BKhw.bfloat16(), prediction.classes_BKC.bfloat16())
    exact = Prediction(half.masks_BKhw.float(), half.classes_BKC.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(value(loss, half, labels), value(loss, exact, labels))
