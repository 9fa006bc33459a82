"""RPO and beta-DPO as maths: worked numbers, identities, and what is refused. float64 throughout."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gradkit.objectives import RPO, BetaDPO, Objective, PreferenceRecord, build_objective, dpo_losses
from hf_gradkit.objectives.beta_dpo import BetaAdapter
from hf_gradkit.objectives.logps import preference_record


def record(chosen, rejected, ref_chosen=None, ref_rejected=None, tokens=None, beta=0.1) -> PreferenceRecord:
    chosen, rejected = (torch.tensor(v, dtype=torch.float64) for v in (chosen, rejected))
    ref_chosen, ref_rejected = (
        torch.zeros_like(chosen) if v is None else torch.tensor(v, dtype=torch.float64)
        for v in (ref_chosen, ref_rejected)
    )
    tokens = torch.tensor(tokens if tokens is not None else [1] * len(chosen))
    return PreferenceRecord(chosen, rejected, ref_chosen, ref_rejected, tokens, tokens, beta)


def test_dpo_worked_number():
    """m = (-10 + 12) - (-20 + 19) = 3; beta .1: -log s(.3) = .554355."""
    one = record([-10.0], [-20.0], [-12.0], [-19.0])
    assert one.margins.tolist() == [3.0]
    assert dpo_losses(one).item() == pytest.approx(0.5543552, abs=1e-7)


def test_rpo_worked_numbers():
    """The same pair, 4 tokens: .554355 + .005 * .1 * 10 (sum), .554355 + .2 * 10 / 4 (average)."""
    one = record([-10.0], [-20.0], [-12.0], [-19.0], tokens=[4])
    assert RPO()(one).item() == pytest.approx(0.5543552 + 0.005, abs=1e-7)
    assert RPO(normalization="average")(one).item() == pytest.approx(0.5543552 + 0.5, abs=1e-7)
    assert RPO(eta=0.0)(one).tolist() == dpo_losses(one).tolist()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), n=st.integers(1, 5), normalization=st.sampled_from(["sum", "average"]))
def test_rpo_gradients(seed, n, normalization):
    """d/dlw = -beta s(-beta m) - second term's; d/dll = +beta s(-beta m)."""
    generator = torch.Generator().manual_seed(seed)
    lw, ll, rw, rl = (torch.randn(n, generator=generator, dtype=torch.float64) * 5 - 20 for _ in range(4))
    tokens = torch.randint(1, 30, (n,), generator=generator)
    lw, ll = lw.requires_grad_(), ll.requires_grad_()
    pairs = PreferenceRecord(lw, ll, rw, rl, tokens, tokens, 0.3)
    RPO(eta=0.1, normalization=normalization)(pairs).sum().backward()
    pull = 0.3 * torch.sigmoid(-0.3 * pairs.margins.detach())
    second = 0.1 * 0.3 * torch.ones(n) if normalization == "sum" else 0.1 / tokens
    assert torch.allclose(lw.grad, -pull - second)
    assert torch.allclose(ll.grad, pull)


def test_each_pair_has_its_own_value():
    """One value a pair, whatever the others are: what makes RPO independent of the split of a batch."""
    values = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = torch.tensor([3, 9, 1, 4, 7])
    together = PreferenceRecord(*values, tokens, tokens, 0.2)
    for objective in (RPO(eta=0.5), RPO(eta=0.5, normalization="average"), BetaDPO()):
        alone = [objective(PreferenceRecord(*values[:, [i]], tokens[[i]], tokens[[i]], 0.2)).item() for i in range(5)]
        assert objective(together).tolist() == pytest.approx(alone, rel=1e-12)


def test_trls_relative_of_rpo_needs_another_weight():
    """["sigmoid", "sft"] is a token mean: at w = .005 it is eta beta mean(T) / .005 times too weak."""
    tokens = torch.tensor([200, 300])
    lw = torch.tensor([-400.0, -650.0], dtype=torch.float64)
    zeros = torch.zeros(2, dtype=torch.float64)
    pairs = PreferenceRecord(lw, zeros, zeros, zeros, tokens, tokens, 0.05)
    eta = 0.005
    ours = RPO(eta=eta).regulariser(pairs).mean()
    token_mean = -lw.sum() / tokens.sum()
    assert (ours / token_mean).item() == pytest.approx(eta * 0.05 * tokens.double().mean().item())


# ---- beta-DPO -------------------------------------------------------------------------------------------------------


def test_the_first_batch_sets_the_averages():
    """Bias correction: after one batch the averages are that batch's own, not a tenth of them."""
    gaps = torch.tensor([1.0, 2.0, 3.0, 10.0], dtype=torch.float64)
    adaptation = BetaAdapter(BetaDPO(keep_ratio=1.0), 0.1, 0).adapt(gaps)
    assert adaptation.figures["gap_mean"] == pytest.approx(4.0)
    assert adaptation.figures["gap_std"] == pytest.approx(gaps.std().item())
    assert adaptation.beta == pytest.approx(0.1)  # all kept: their mean is mu


def test_the_moving_averages():
    """Two batches with means 4 and 8, decay .9: (.9 * .1 * 4 + .1 * 8) / (1 - .81) = 6.10526."""
    adapter = BetaAdapter(BetaDPO(keep_ratio=1.0), 0.1, 0)
    adapter.adapt(torch.tensor([3.0, 5.0]))
    second = adapter.adapt(torch.tensor([6.0, 10.0]))
    assert second.figures["gap_mean"] == pytest.approx((0.9 * 0.1 * 4 + 0.1 * 8) / 0.19)
    spread = (0.9 * 0.1 * math.sqrt(2) + 0.1 * math.sqrt(8)) / 0.19
    assert second.figures["gap_std"] == pytest.approx(spread)
    assert second.beta == pytest.approx(0.1 * (1 + 0.6 * (8 - second.figures["gap_mean"])))


def test_beta_has_a_floor():
    adapter = BetaAdapter(BetaDPO(keep_ratio=1.0), 0.1, 0)
    adapter.adapt(torch.tensor([50.0, 52.0]))
    assert adapter.adapt(torch.tensor([-50.0, -52.0])).beta == 1e-3


@pytest.mark.parametrize(("n", "kept"), [(10, 8), (5, 4), (4, 3), (1, 1)])
def test_how_many_are_kept(n, kept):
    adaptation = BetaAdapter(BetaDPO(), 0.1, 0).adapt(torch.randn(n, generator=torch.Generator().manual_seed(1)))
    assert int(adaptation.keep.sum()) == kept
    assert adaptation.figures["kept"] == pytest.approx(kept / n)


def test_at_least_one_pair_is_kept():
    assert int(BetaAdapter(BetaDPO(keep_ratio=0.01), 0.1, 0).adapt(torch.tensor([1.0, 2.0])).keep.sum()) == 1


def test_pairs_are_drawn_in_proportion_to_their_density():
    """One of two is kept: the odds are those of the densities exp(-z^2 / 2)."""
    gaps = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
    method = BetaDPO(keep_ratio=0.4)  # int(.4 * 3) = 1
    drawn = torch.zeros(3)
    n = 20_000
    for seed in range(n):
        drawn += BetaAdapter(method, 0.1, seed).adapt(gaps).keep
    density = torch.exp(-0.5 * ((gaps - gaps.mean()) / gaps.std()).square())
    expected = density / density.sum()
    assert torch.allclose(drawn.double() / n, expected, atol=4 * math.sqrt(0.25 / n))


def test_a_single_pair_tells_nothing_of_the_spread():
    adapter = BetaAdapter(BetaDPO(keep_ratio=1.0), 0.1, 0)
    adapter.adapt(torch.tensor([7.0]))
    second = adapter.adapt(torch.tensor([6.0, 10.0]))
    assert second.figures["gap_std"] == pytest.approx(math.sqrt(8))
    assert second.figures["gap_mean"] == pytest.approx((0.9 * 0.1 * 7 + 0.1 * 8) / 0.19)


def test_the_filter_is_around_the_moving_average():
    """Pairs near the run's mean are kept, and not those near their own batch's."""
    gaps, drawn = torch.tensor([0.0, 1.0, 5.0], dtype=torch.float64), torch.zeros(3)
    for seed in range(400):
        adapter = BetaAdapter(BetaDPO(keep_ratio=0.4), 0.1, seed)
        for _ in range(50):
            adapter.adapt(torch.tensor([4.0, 5.0, 6.0]))
        drawn += adapter.adapt(gaps).keep
    assert drawn[2] > 350


def test_each_batch_is_drawn_anew_and_by_the_seed():
    gaps = torch.randn(64, generator=torch.Generator().manual_seed(0))
    adapter = BetaAdapter(BetaDPO(keep_ratio=0.5), 0.1, 0)
    first, second = adapter.adapt(gaps).keep, adapter.adapt(gaps).keep
    assert not torch.equal(first, second)
    assert not torch.equal(first, BetaAdapter(BetaDPO(keep_ratio=0.5), 0.1, 1).adapt(gaps).keep)


def test_an_answer_without_tokens_does_not_divide_by_zero():
    assert RPO(normalization="average").regulariser(record([0.0], [-1.0], tokens=[0])).tolist() == [0.0]


def test_far_outliers_are_left_out_without_underflow():
    gaps = torch.cat([torch.zeros(50, dtype=torch.float64), torch.tensor([1e6] * 2, dtype=torch.float64)])
    adapter = BetaAdapter(BetaDPO(), 0.1, 0)
    for _ in range(30):
        adapter.adapt(torch.randn(20, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    adapter._spread = 1e-3  # every density but the nearest underflows
    adaptation = adapter.adapt(gaps)
    assert int(adaptation.keep.sum()) == int(0.8 * 52)


def test_the_state_goes_on_where_it_was():
    batches = [torch.randn(10, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    straight, first = BetaAdapter(BetaDPO(), 0.1, 7), BetaAdapter(BetaDPO(), 0.1, 7)
    expected = [straight.adapt(batch) for batch in batches]
    for batch in batches[:3]:
        first.adapt(batch)
    resumed = BetaAdapter(BetaDPO(), 0.1, 7)
    resumed.load_state_dict(first.state_dict())
    for batch, adaptation in zip(batches[3:], expected[3:], strict=True):
        again = resumed.adapt(batch)
        assert again.keep.tolist() == adaptation.keep.tolist()
        assert again.figures == adaptation.figures


# ---- answers from tokens --------------------------------------------------------------------------------------------


def test_length_desensitised_sums():
    """LD-DPO: tokens beyond the shorter answer's length count ld_alpha."""
    logps = torch.tensor([[-1.0, -2.0, -4.0, 0.0], [0.0, -8.0, -16.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 0]])
    zero = torch.zeros(1, dtype=torch.float64)
    plain = preference_record(logps, mask, zero, zero, 0.1)
    assert (plain.chosen_logps.item(), plain.rejected_logps.item()) == (-7.0, -24.0)
    assert (plain.chosen_tokens.item(), plain.rejected_tokens.item()) == (3, 2)
    shorter = preference_record(logps, mask, zero, zero, 0.1, ld_alpha=0.25)
    assert (shorter.chosen_logps.item(), shorter.rejected_logps.item()) == (-4.0, -24.0)


# ---- names and options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "part"),
    [
        ("rpo", {"eta": -1}, "`eta` of rpo must be a number of at least 0, but it is -1"),
        ("rpo", {"eta": "much"}, "but it is 'much'"),
        ("rpo", {"normalization": "token"}, "`normalization` of rpo must be 'sum' or 'average', but it is 'token'"),
        ("rpo", {"etta": 1}, "no option 'etta'. Did you mean 'eta'"),
        ("beta_dpo", {"decay": 1.0}, r"`decay` of beta_dpo must be in \[0, 1\)"),
        ("beta_dpo", {"keep_ratio": 0}, r"`keep_ratio` of beta_dpo must be in \(0, 1\]"),
        ("beta_dpo", {"alpha": -0.1}, "`alpha` of beta_dpo must be at least 0"),
        ("beta_dpo", {"alpha": True}, "`alpha` of beta_dpo must be a number, but it is True"),
        ("rpp", {}, "no preference objective 'rpp'. Did you mean 'rpo'"),
        ("math:sqrt", {}, "'math:sqrt' is not a preference objective"),
        ("nowhere:Thing", {}, "could not be imported"),
    ],
)
def test_bad_objectives(name, options, part):
    with pytest.raises(ValueError, match=part):
        build_objective(name, options)


def test_the_authors_settings_are_the_defaults():
    assert (RPO().strength, RPO(normalization="average").strength) == (0.005, 0.2)
    assert (BetaDPO().alpha, BetaDPO().decay, BetaDPO().keep_ratio) == (0.6, 0.9, 0.8)
    assert issubclass(RPO, Objective)
