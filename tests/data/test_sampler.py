from whitebox.data.sampler import EpochSampler


def test_every_sample_once_in_an_order_of_its_own() -> None:
    sampler = EpochSampler(50, seed=3)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        drawn = list(sampler)
        assert [key[0] for key in drawn] == [epoch] * 50
        orders.append([key[1] for key in drawn])
        assert sorted(orders[-1]) == list(range(50))
    assert orders[0] != orders[1] != orders[2]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    first, second, other = EpochSampler(50, seed=3), EpochSampler(50, seed=3), EpochSampler(50, seed=4)
    list(first)  # what was drawn before does not matter
    for sampler in (first, second, other):
        sampler.set_epoch(7)
    assert list(first) == list(second) != list(other)


def test_skip_is_for_one_epoch() -> None:
    sampler = EpochSampler(10, seed=0)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.set_epoch(2, skip=4)
    assert list(sampler) == whole[4:]
    assert len(sampler) == 6
    sampler.set_epoch(3)
    assert len(sampler) == len(list(sampler)) == 10


def test_without_shuffling() -> None:
    assert list(EpochSampler(3, shuffle=False)) == [(0, 0), (0, 1), (0, 2)]
