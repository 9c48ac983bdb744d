"""What benchmarks share. Times are never asserted: the clock is made."""

import itertools

from benchmarking import load_benchmark

turns = load_benchmark("turns")


def test_tasks_alternate_and_the_first_turn_is_not_counted():
    done = []
    ticks = itertools.count(start=0.0, step=0.5)
    found = turns.seconds({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, 2, lambda: next(ticks))
    assert done == ["a", "b"] * 3
    assert found == {"a": [0.5, 0.5], "b": [0.5, 0.5]}


def test_median_and_range_of_turns():
    assert turns.spread((3.0, 1.0, 2.5)) == turns.Estimate(2.5, 1.0, 3.0)
    assert turns.ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == turns.Estimate(2.0, 1.0, 3.0)
