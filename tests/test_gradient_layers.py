"""Each layer type's maths against autograd of one row at a time, in float64, over shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_gradkit.gradients.batch import Sorter
from hf_gradkit.gradients.layers import linear
from hf_gradkit.gradients.layers.embedding import scatter
from hf_gradkit.gradients.layers.expanded import expand, sum_segments, take
from hf_gradkit.gradients.layers.head import Logits, head_backward
from hf_gradkit.gradients.tally import BLOCK, Tally

SIZES = st.integers(1, 7)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(rows=SIZES, tokens=SIZES, i=SIZES, o=SIZES, budget=st.sampled_from([8, 64, 10**6]), seed=st.integers(0, 99))
def test_linear(rows, tokens, i, o, budget, seed):
    x, g = randn(rows, tokens, i, seed=seed), randn(rows, tokens, o, seed=seed + 1)
    each = torch.einsum("rto,rti->roi", g, x)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "BUDGET", budget)
        total = linear.materialise(x, g, seen.append)
    assert torch.allclose(total, each.sum(0))
    assert torch.allclose(torch.cat(seen, dim=1), each.flatten(1))
    assert torch.allclose(linear.weight_gradient(x, g), each.sum(0))
    pairs = torch.combinations(torch.arange(rows), with_replacement=True)
    found = linear.ghost_pairs(x, g, pairs).double()
    expected = (each[pairs[:, 0]] * each[pairs[:, 1]]).sum((1, 2))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(rows=SIZES, tokens=SIZES, d=SIZES, padding=st.sampled_from([None, 0, 2]), seed=st.integers(0, 99))
def test_embedding(rows, tokens, d, padding, seed):
    ids = torch.randint(0, 5, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    g = randn(rows, tokens, d, seed=seed)
    unique = torch.unique(ids)
    found = scatter(ids, g, unique, padding)
    for row in range(rows):
        embedding = torch.nn.Embedding(5, d, padding_idx=padding, dtype=torch.float64)
        (embedding(ids[row]) * g[row]).sum().backward()
        assert torch.allclose(found[row], embedding.weight.grad[unique])


@settings(deadline=None, max_examples=30)
@given(
    tokens=st.integers(1, 9),
    d=st.integers(1, 5),
    vocabulary=st.integers(2, 9),
    softcap=st.sampled_from([None, 3.0]),
    scale=st.sampled_from([1.0, 0.25]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_head(tokens, d, vocabulary, softcap, scale, bias, seed):
    hidden, weight = randn(tokens, d, seed=seed), randn(vocabulary, d, seed=seed + 1).requires_grad_()
    shift = randn(vocabulary, seed=seed + 2).requires_grad_() if bias else None
    labels = torch.randint(0, vocabulary, (tokens,), generator=torch.Generator().manual_seed(seed))
    c, row_of = randn(tokens, seed=seed + 3), torch.arange(tokens) % 3
    logits = Logits(scale, softcap, 0.7)

    def log_probs(h):
        z = logits(h @ weight.T + (0 if shift is None else shift))[0]
        return z.log_softmax(-1).gather(1, labels[:, None])[:, 0]

    rows, biases = [], []
    for row in range(3):
        loss = (log_probs(hidden) * c * (row_of == row)).sum()
        wanted = [weight] if shift is None else [weight, shift]
        grads = torch.autograd.grad(loss, wanted)
        rows.append(grads[0])
        biases.append(grads[-1] if bias else None)
    live = hidden.clone().requires_grad_()
    (expected_hidden,) = torch.autograd.grad((log_probs(live) * c).sum(), live)
    seen, seen_bias = [], []

    def see(part, part_bias, start):
        seen.append(part)
        seen_bias.append(part_bias)

    with torch.no_grad():
        found = head_backward(hidden, weight, shift, labels, log_probs(hidden), c, logits, Sorter(row_of, 3), see)
    assert torch.allclose(found[0], expected_hidden, atol=1e-9)
    assert torch.allclose(found[1], torch.stack(rows).sum(0), atol=1e-9)
    assert torch.allclose(torch.cat(seen, dim=1), torch.stack(rows), atol=1e-9)
    if bias:
        assert torch.allclose(found[2], torch.stack(biases).sum(0), atol=1e-9)
        assert torch.allclose(torch.cat(seen_bias, dim=1), torch.stack(biases), atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(rows=SIZES, tokens=SIZES, d=SIZES, seed=st.integers(0, 99))
def test_weights_of_norms_once_a_row_or_segment(rows, tokens, d, seed):
    weight, x = randn(d, seed=seed), randn(rows, tokens, d, seed=seed + 1)
    assert torch.equal(x * expand(weight, rows, 3), x * weight)
    assert expand(weight, rows, 4).shape == (rows, 1, 1, d)
    segments = torch.arange(rows).repeat_interleave(tokens)
    assert torch.equal(x.view(1, -1, d) * take(weight, segments, 3), (x * weight).view(1, -1, d))
    assert torch.allclose(sum_segments(x.view(1, -1, d), segments, rows), x.sum(1))
    segments[0] = -1
    assert torch.allclose(sum_segments(x.view(1, -1, d), segments, rows)[0], x[0, 1:].sum(0))


@settings(deadline=None, max_examples=20)
@given(rows=st.integers(1, 5), k=st.sampled_from([1, 7, BLOCK - 1, BLOCK, BLOCK + 3, 2 * BLOCK]))
def test_tally_over_blocks(rows, k):
    gradients = randn(rows, k, seed=k)
    expected = gradients @ gradients.T
    for mode in ("gram", "pairs", "norms"):
        tally = Tally(mode, rows)
        tally.add("w", gradients.float())
        found = tally.matrix()
        kept = ~found.isnan()
        assert torch.allclose(found[kept], expected[kept], rtol=1e-4, atol=1e-3 * k**0.5)
        assert kept.diagonal().all()
        if mode == "gram":
            assert kept.all()


def test_tokens_are_sorted_by_row_and_padded():
    sorter = Sorter(torch.tensor([2, 0, -1, 2, 0, 2]), 4)
    found = sorter(torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]]))
    assert found[..., 0].tolist() == [[2, 5, 0], [0, 0, 0], [1, 4, 6], [0, 0, 0]]
