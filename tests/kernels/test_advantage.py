import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_helpers import DEVICE, FAST_FORMS, FORMS, generator
from torch.library import opcheck

from nanov2.kernels.advantage import SCALES, group_advantage, group_advantage_op

NAN = float("nan")


def tensor(values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype, device=DEVICE)


def some_groups(n=60, seed=0):
    """Ragged groups of scattered ids, one NaN, one group without variance, one of a single row."""
    g = generator(seed)
    rewards, ids = torch.rand(n, generator=g), torch.randint(-3, 4, (n,), generator=g) * 7
    rewards[5], ids[9] = NAN, 1000
    rewards[ids == 14] = 0.945
    return rewards.to(DEVICE), ids.to(DEVICE)


def same(found, wanted, **tolerance):
    for a, b in zip((found[0], *found[1]), (wanted[0], *wanted[1]), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("impl", FAST_FORMS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_every_form_agrees_with_the_reference(impl, scale, ddof, dtype):
    rewards, ids = some_groups()
    options = {"scale": scale, "ddof": ddof}
    if impl == "triton" and dtype == torch.float64:
        with pytest.raises(ValueError):
            group_advantage(rewards.to(dtype), ids, impl=impl, **options)
        return
    wanted = group_advantage(rewards.to(dtype), ids, impl="reference", **options)
    same(group_advantage(rewards.to(dtype), ids, impl=impl, **options), wanted, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("impl", FORMS)
def test_worked_example(impl):
    rewards, ids = tensor([1.0, 0.0, 0.0, 1.0, 0.5]), tensor([7, 7, 7, 7, 3], torch.int64)
    advantage, stats = group_advantage(rewards, ids, impl=impl, eps=0.0)
    torch.testing.assert_close(advantage, tensor([1.0, -1.0, -1.0, 1.0, 0.0]))
    assert stats.group_id.tolist() == [3, 7]
    assert stats.reward_mean.tolist() == [0.5, 0.5] and stats.reward_std.tolist() == [0.0, 0.5]
    assert stats.count.tolist() == [1, 4] and stats.has_variance.tolist() == [False, True]
    loo, _ = group_advantage(rewards, ids, impl=impl, scale="loo")
    others = [1 / 3, 2 / 3, 2 / 3, 1 / 3]  # the mean of the other three
    torch.testing.assert_close(loo[:4], rewards[:4] - tensor(others))


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("scale", SCALES)
def test_equal_rewards_give_advantage_zero(impl, scale):
    """C9: sixty-four rewards of 0.945 have a deviation of rounding's size in float32, and no variance."""
    rewards = torch.full((64,), 0.945, device=DEVICE)
    advantage, stats = group_advantage(
        rewards, torch.zeros(64, dtype=torch.int64, device=DEVICE), scale=scale
    )
    assert not advantage.any() and not stats.has_variance.any()


@pytest.mark.parametrize("impl", FORMS)
def test_smallest_difference_is_variance(impl):
    """C9, the other side: max > min by one unit in the last place."""
    rewards = torch.full((8,), 0.945, device=DEVICE)
    rewards[0] = torch.nextafter(rewards[0], tensor(1.0))
    advantage, stats = group_advantage(rewards, torch.zeros(8, dtype=torch.int64, device=DEVICE), impl=impl)
    assert bool(stats.has_variance.all()) and float(advantage[0]) > 0 > float(advantage[1])


@pytest.mark.parametrize("impl", FORMS)
@pytest.mark.parametrize("scale", SCALES)
def test_nan_rewards_are_counted_and_otherwise_absent(impl, scale):
    """C11: the group's other rewards get what they would get without it."""
    ids = tensor([0, 0, 0, 0, 1, 1], torch.int64)
    advantage, stats = group_advantage(tensor([0.2, NAN, 0.9, 0.4, NAN, NAN]), ids, scale=scale, impl=impl)
    alone, _ = group_advantage(tensor([0.2, 0.9, 0.4]), ids[:3], scale=scale, impl=impl)
    torch.testing.assert_close(advantage[[0, 2, 3]], alone)
    assert not advantage[[1, 4, 5]].any()
    assert stats.nan_count.tolist() == [1, 2] and stats.count.tolist() == [3, 0]
    assert stats.reward_mean.isfinite().all() and stats.reward_mean[1] == 0 and not stats.has_variance[1]


@pytest.mark.parametrize("impl", FORMS)
def test_offsets_and_ids_say_the_same(impl):
    rewards = torch.rand(9, generator=generator()).to(DEVICE)
    by_offsets = group_advantage(rewards, offsets=tensor([0, 4, 4, 9], torch.int64), impl=impl)
    by_ids = group_advantage(rewards, tensor([5] * 4 + [6] * 5, torch.int64), impl=impl)
    torch.testing.assert_close(by_offsets[0], by_ids[0])
    assert by_offsets[1].group_id.tolist() == [0, 1, 2]
    assert by_offsets[1].count.tolist() == [4, 0, 5]  # an empty group is a group without variance
    assert not by_offsets[1].has_variance[1]


@pytest.mark.parametrize("impl", FORMS)
def test_std_convention_is_population_and_eps_is_added(impl):
    """C21: ddof = 0 and eps = 1e-6 outside the root unless told otherwise."""
    rewards, ids = tensor([0.0, 0.3, 0.9, 1.0]), tensor([0] * 4, torch.int64)
    centred = rewards.double() - rewards.double().mean()
    for ddof, eps in ((0, 1e-6), (1, 1e-6), (0, 1e-4), (1, 0.5)):
        found, stats = group_advantage(rewards, ids, ddof=ddof, eps=eps, impl=impl)
        std = rewards.double().std(correction=ddof)
        torch.testing.assert_close(found, (centred / (std + eps)).float())
        torch.testing.assert_close(stats.reward_std[0], std.float())
    torch.testing.assert_close(
        group_advantage(rewards, ids, impl=impl)[0],
        (centred / (rewards.double().std(correction=0) + 1e-6)).float(),
    )


@pytest.mark.parametrize("impl", FORMS)
def test_no_rewards_and_no_groups(impl):
    empty = torch.zeros(0, device=DEVICE)
    advantage, stats = group_advantage(empty, torch.zeros(0, dtype=torch.int64, device=DEVICE), impl=impl)
    assert advantage.shape == (0,) and all(len(x) == 0 for x in stats)
    advantage, stats = group_advantage(empty, offsets=tensor([0, 0], torch.int64), impl=impl)
    assert stats.count.tolist() == [0] and stats.has_variance.tolist() == [False]


@pytest.mark.parametrize("impl", FAST_FORMS)
def test_a_group_longer_than_a_block(impl):
    rewards, ids = some_groups(700)
    ids[:] = ids % 2
    same(
        group_advantage(rewards, ids, impl=impl),
        group_advantage(rewards, ids, impl="reference"),
        rtol=2e-6,
        atol=1e-7,
    )


rewards_and_ids = st.lists(
    st.tuples(st.integers(0, 1024), st.integers(0, 5), st.booleans()), min_size=1, max_size=60
)  # rewards in 1/1024, so that shifts and scales by powers of two are exact


def read(rows):
    rewards = torch.tensor(
        [NAN if failed and i % 3 == 0 else r / 1024 for i, (r, _, failed) in enumerate(rows)]
    )
    return rewards, torch.tensor([g for _, g, _ in rows])


@settings(max_examples=60, deadline=None)
@given(rewards_and_ids, st.randoms(use_true_random=False), st.sampled_from(SCALES))
def test_shuffled_rows_give_the_same_advantages(rows, random, scale):
    """C10: groups are made by id, wherever their rows are."""
    rewards, ids = read(rows)
    order = list(range(len(rows)))
    random.shuffle(order)
    plain = group_advantage(rewards, ids, scale=scale, impl="cpu")[0]
    shuffled = group_advantage(rewards[order], ids[order], scale=scale, impl="cpu")[0]
    torch.testing.assert_close(shuffled, plain[order])


@settings(max_examples=60, deadline=None)
@given(rewards_and_ids, st.integers(-4, 4), st.sampled_from([0.25, 0.5, 2.0, 64.0]))
def test_shift_and_scale_of_the_rewards_do_not_matter(rows, shift, factor):
    rewards, ids = read(rows)
    for scale in SCALES:
        plain = group_advantage(rewards, ids, scale=scale, eps=0.0, impl="cpu")[0]
        moved = group_advantage(rewards * factor + shift, ids, scale=scale, eps=0.0, impl="cpu")[0]
        torch.testing.assert_close(moved, plain if scale == "std" else plain * factor, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(rewards_and_ids)
def test_advantages_of_a_group_have_mean_zero_and_deviation_one(rows):
    rewards, ids = read(rows)
    advantage, stats = group_advantage(rewards, ids, eps=0.0, impl="cpu")
    for g, varied in zip(stats.group_id, stats.has_variance, strict=True):
        of_group = advantage[(ids == g) & ~rewards.isnan()]
        if varied:
            torch.testing.assert_close(of_group.mean(), torch.tensor(0.0), rtol=0, atol=1e-5)
            torch.testing.assert_close(of_group.std(correction=0), torch.tensor(1.0), rtol=1e-4, atol=0)
        else:
            assert not of_group.any()


@pytest.mark.parametrize("form", FAST_FORMS)
def test_operator_keeps_the_contract_of_custom_operators(form):
    rewards, offsets = torch.rand(7, generator=generator()).to(DEVICE), tensor([0, 3, 7], torch.int64)
    order = torch.arange(7, device=DEVICE)
    opcheck(group_advantage_op, (rewards, order, offsets, "std", 1e-6, 0, form))


def test_torch_compile_passes_through():
    rewards, offsets = torch.rand(7, generator=generator()).to(DEVICE), tensor([0, 3, 7], torch.int64)

    def run(x):
        return group_advantage(x, offsets=offsets)[0] * 2

    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(rewards), run(rewards))


def test_unsupported_options_raise():
    """C12."""
    rewards, ids = torch.rand(4), torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match="std, none, loo"):
        group_advantage(rewards, ids, scale="batch")
    with pytest.raises(ValueError, match="reference, cpu, triton"):
        group_advantage(rewards, ids, impl="gpu")
    for wrong in (
        {},
        {"group_ids": ids, "offsets": ids},
        {"group_ids": ids[:2]},
        {"group_ids": ids, "ddof": 2},
    ):
        with pytest.raises(ValueError):
            group_advantage(rewards, **wrong)
    for offsets in ([0, 3], [1, 4], [0, 3, 2, 4], []):
        with pytest.raises(ValueError):
            group_advantage(rewards, offsets=torch.tensor(offsets, dtype=torch.int64))
