"""Sources of variance on tables whose parts are known, and power against simulated studies."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from analysis.maths.resampling import Sampled, interval, sampled
from analysis.maths.variance import Sds, detectable, parts, parts_of_difference, parts_with_draws
from whitebox.errors import ConfigError

Float = NDArray[np.float64]


def table(seeds: int, units: int, sds: tuple[float, float, float], many: int, seed: int = 0) -> Float:
    """Scores of seeds on units, many times, (S, U, M)."""
    random = np.random.default_rng(seed)
    shapes = (seeds, 1, many), (1, units, many), (seeds, units, many)
    return np.asarray(sum(sd * random.normal(size=shape) for sd, shape in zip(sds, shapes, strict=True)))


def found(cells_SUM: Float) -> Sampled:
    """As of a mean over units, with draws that lean to no side."""
    values_SM = cells_SUM.mean(1)
    draws_RM = values_SM.mean(0) + np.linspace(-1, 1, 201)[:, None]
    return Sampled(values_SM, draws_RM, cells_SUM, np.full(cells_SUM.shape[2], cells_SUM.shape[1]))


def test_a_table_without_chance() -> None:
    seed_S, unit_U = np.array([0.0, 1.0, 2.0]), np.array([0.0, 3.0, 6.0, 9.0])
    exact = parts((seed_S[:, None] + unit_U)[..., None])
    assert exact.residual_M[0] == pytest.approx(0, abs=1e-12)
    assert exact.seed_M[0] == pytest.approx(seed_S.std(ddof=1))
    assert exact.unit_M[0] == pytest.approx(unit_U.std(ddof=1))


def test_counts_of_known_parts() -> None:
    """Of equally large images a ratio of sums is a mean, whose pseudo-values are the images' scores."""
    score_SU = 0.5 + table(4, 9, (0.05, 0.1, 0.02), 1)[..., 0]
    counts_SNC = np.stack([score_SU, np.ones_like(score_SU)], -1)
    of = sampled(counts_SNC, lambda sums: (sums[..., 0] / sums[..., 1])[..., None], resamples=1)
    np.testing.assert_allclose(of.cells_SUM[..., 0], score_SU, atol=1e-12)
    expected = parts(score_SU[..., None])
    assert parts(of.cells_SUM).seed_M == pytest.approx(expected.seed_M)


def test_they_are_found_in_the_mean() -> None:
    for sds in ((1.0, 2.0, 0.5), (2.0, 1.0, 1.0)):
        of = parts(table(6, 12, sds, 20_000))
        random = [of.seed_M**2, of.unit_M**2, of.residual_M**2]
        for each, sd in zip(random, sds, strict=True):
            assert each.mean() == pytest.approx(sd**2, rel=0.05, abs=0.05)  # those below 0 are 0


def test_one_training_and_one_unit() -> None:
    one = parts(table(1, 8, (1, 1, 1), 1))
    assert np.isnan([one.seed_M[0], one.residual_M[0]]).all() and one.unit_M[0] > 0
    assert np.isnan(parts(table(3, 1, (1, 1, 1), 1)).unit_M[0])


@pytest.mark.parametrize("shape", [(40, 30, 35), (1, 60, 50), (60, 50, 1)])
def test_parts_of_trainings_units_and_draws(shape: tuple[int, int, int]) -> None:
    """Truth is drawn: three factors, each two of them together, and what is left."""
    generator, cells = np.random.default_rng(0), np.zeros(shape)
    sds = {(0,): 1.0, (1,): 3.0, (2,): 2.0, (0, 1): 0.5, (0, 2): 0.7, (1, 2): 0.4, (0, 1, 2): 0.3}
    for axes, sd in sds.items():
        cells = cells + sd * generator.normal(size=[size if axis in axes else 1 for axis, size in enumerate(shape)])
    of = parts_with_draws(cells)
    for axis, (name, expected) in enumerate({"seed": 1.0, "unit": 3.0, "draw": 2.0}.items()):
        found = getattr(of, name)
        assert np.isnan(found) if shape[axis] == 1 else found == pytest.approx(expected, rel=0.35), name
    left = np.sqrt(sum(sd**2 for axes, sd in sds.items() if sum(shape[axis] > 1 for axis in axes) > 1))
    assert of.residual == pytest.approx(left, rel=0.2)
    assert sum(of.shares.values()) == pytest.approx(1) and max(of.shares, key=of.shares.__getitem__) == "unit"


def test_two_factors_are_those_of_an_evaluation() -> None:
    cells = table(3, 8, (1, 2, 0.5), 1)
    two, three = parts(cells), parts_with_draws(cells[..., :1])
    assert (three.seed, three.unit, three.residual) == pytest.approx(two.sds(0))
    alone = parts_with_draws(cells[:1, :, :1])
    assert alone.unit == pytest.approx(parts(cells[:1]).unit_M[0]) and np.isnan(alone.residual)
    assert parts_with_draws(np.ones((2, 3, 2))).shares == {} == parts_with_draws(np.ones((1, 1, 1))).shares


def test_differences_in_pairs_and_of_other_seeds() -> None:
    units = table(1, 200, (0, 3, 0), 1)
    model = found(units + table(3, 200, (1, 0.5, 0.2), 1, 1))
    reference = found(units + table(5, 200, (1, 0.5, 0.2), 1, 2))
    apart = parts_of_difference(model, reference, matched=False)
    assert apart.unit_M[0] == pytest.approx(np.hypot(0.5, 0.5), rel=0.15)  # not 3: what units share cancels
    assert apart.residual_M[0] == pytest.approx(np.hypot(0.2, 0.2), rel=0.1)
    first = found(reference.cells_SUM[:3])
    same = parts_of_difference(model, first, matched=True)
    assert same.unit_M[0] == pytest.approx(parts(model.cells_SUM - first.cells_SUM).unit_M[0])
    single = parts_of_difference(model, found(reference.cells_SUM[:1]), matched=False)
    assert np.isnan([single.seed_M[0], single.residual_M[0]]).all()
    assert np.isnan(parts_of_difference(found(model.cells_SUM[:, :1]), reference, matched=False).unit_M[0])


@pytest.mark.parametrize("sds", [(1.0, 1.0, 0.5), (0.1, 2.0, 0.5), (1.0, 0.1, 0.5)])
@pytest.mark.parametrize(("seeds", "units"), [(3, 10), (5, 23), (10, 5)])
@pytest.mark.parametrize("comparisons", [1, 7])
def test_simulated_studies_find_it_as_often(
    sds: tuple[float, float, float], seeds: int, units: int, comparisons: int
) -> None:
    difference = detectable(Sds(*sds), seeds, units, comparisons=comparisons)
    p_M = interval(found(difference + table(seeds, units, sds, 4000, 3))).p_M
    assert 0.7 < (p_M < 0.05 / comparisons).mean() < 0.88
    assert (interval(found(0.4 * difference + table(seeds, units, sds, 4000, 4))).p_M < 0.05 / comparisons).mean() < 0.4


def test_more_of_anything_shows_less() -> None:
    of = [detectable(Sds(1, 2, 0.5), seeds, units) for seeds, units in ((3, 5), (5, 5), (5, 10), (50, 1000))]
    assert of == sorted(of, reverse=True) and len(set(of)) == 4
    assert detectable(Sds(0, 0, 0), 3, 3) == 0
    assert detectable(Sds(1, 1, 1), 3, 3, power=0.9) > detectable(Sds(1, 1, 1), 3, 3)
    assert detectable(Sds(2, 4, 1), 5, 5) == pytest.approx(2 * detectable(Sds(1, 2, 0.5), 5, 5))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": 2}, "seeds=2"),
        ({"units": 2}, "units=2"),
        ({"seed": -1.0}, "sd-seed=-1"),
        ({"unit": float("nan")}, "sd-unit=nan"),
        ({"power": 1.0}, "power=1"),
        ({"comparisons": 0}, "comparisons=0"),
    ],
)
def test_what_cannot_be(given: dict[str, float], message: str) -> None:
    values = {"seed": 1.0, "unit": 1.0, "residual": 1.0, "seeds": 3, "units": 5, **given}
    sds = Sds(*(values.pop(name) for name in Sds._fields))
    with pytest.raises(ConfigError, match=message):
        detectable(sds, **values)  # type: ignore[arg-type]
