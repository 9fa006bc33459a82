"""What the consistency monitor takes from one worker: norms, sketches and noise, and what they should be."""

import math
from types import SimpleNamespace

import pytest
import torch

from hf_gradkit import WorkerConsistencyCallback
from hf_gradkit.callbacks.single_examples import NOISE_STEPS, SingleExamples
from hf_gradkit.callbacks.worker_agreement import WorkerAgreement, packed
from hf_gradkit.callbacks.worker_gradients import OwnGradients, WorkerGradient
from hf_gradkit.data.tiny import tiny_llama
from hf_gradkit.gradients.errors import GradientRecordError
from hf_gradkit.gradients.projections import signs
from hf_gradkit.gradients.workers import ChangeWithin, GradientSketch, NoiseWithin, dispersion, mean_cosine


def test_the_mean_cosine_follows_from_norms():
    torch.manual_seed(0)
    gradients = torch.randn(5, 40, dtype=torch.float64) + 0.3
    norms = gradients.norm(dim=1)
    products = gradients @ gradients.T
    off = ~torch.eye(5, dtype=torch.bool)
    expected = products[off].sum() / torch.outer(norms, norms)[off].sum()
    assert mean_cosine(norms, gradients.mean(0).norm()) == pytest.approx(expected.item(), abs=1e-12)


def test_the_healthy_cosine_is_that_of_simulated_workers():
    """Workers whose gradients are means of 8 noisy examples: tr S = 60 * 4, |G|^2 = 9."""
    torch.manual_seed(0)
    noise, cosines = NoiseWithin(2000, recent=2000), []
    mean = torch.zeros(60, dtype=torch.float64)
    mean[0] = 3.0
    for _ in range(2000):
        examples = mean + 2.0 * torch.randn(2, 8, 60, dtype=torch.float64)
        workers = examples.mean(1)
        single, whole = examples.square().sum(2).mean().item(), workers.square().sum(1).mean().item()
        noise.update(single, 1.0, whole, 8.0, (workers[0] @ workers[1]).item())
        cosines.append(torch.cosine_similarity(workers[0], workers[1], dim=0).item())
    assert noise.noise_scale == pytest.approx(240 / 9, rel=0.1)
    assert noise.expected_cosine(8.0) == pytest.approx(sum(cosines) / len(cosines), rel=0.1)
    assert noise.ratio == pytest.approx(1.0, abs=0.1)
    assert NoiseWithin(5).expected_cosine(8.0) is None
    assert NoiseWithin(5).ratio is None


def test_the_healthy_cosine_is_that_of_the_last_steps():
    """8 steps count: |G|^2 = 4 and tr S = 8 at first, 16 from then on."""
    noise = NoiseWithin(100)
    noise.update(small=4.0, of_small=8.0, large=4.0, of_large=8.0, products=1.0)  # the same size: nothing is known
    assert noise.noise_scale is None
    for trace, steps in ((8.0, 20), (16.0, 8)):
        for _ in range(steps):
            noise.update(4 + trace, 1.0, 4 + trace / 8, 8.0, products=4.0)
        assert noise.noise_scale == pytest.approx(trace / 4)
        assert noise.expected_cosine(8.0) == pytest.approx(8 / (8 + trace / 4))
    assert noise.ratio == pytest.approx(1.0)


def test_dispersion_is_around_the_workers_own_mean():
    assert dispersion(torch.tensor([1.0, 3.0])) == 1.0


def test_the_healthy_dispersion_knows_no_constant_difference():
    torch.manual_seed(0)
    healthy, shifted = ChangeWithin(400), ChangeWithin(400)
    for step in range(400):
        losses = 3.0 - 0.005 * step + torch.randn(4, dtype=torch.float64) * 0.1
        healthy.update(losses)
        shifted.update(losses + torch.tensor([1.0, 0, 0, 0]))
    assert healthy.expected == pytest.approx(0.1 * (3 / 4) ** 0.5, rel=0.1)
    assert healthy.ratio == pytest.approx(1.0, abs=0.1)
    assert healthy.offset()[1] < 5
    assert shifted.expected == pytest.approx(healthy.expected, rel=1e-6)
    assert shifted.ratio > 4
    worker, errors, difference = shifted.offset()
    assert worker == 0
    assert errors > 50
    assert difference == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("copies", "ratio"), [(1, 1.0), (3, 0.5**0.5), (4, 0.0)])
def test_workers_that_share_their_data_are_below_the_healthy_dispersion(copies, ratio):
    """Of four, `copies` have the same batches: three of them leave half of the variance."""
    torch.manual_seed(0)
    change = ChangeWithin(400)
    for _ in range(400):
        own = torch.randn(4, dtype=torch.float64)
        own[:copies] = own[0]
        change.update(2 + 0.1 * own)
    assert change.expected == pytest.approx(0.1 * (3 / 4) ** 0.5, rel=0.15 if copies == 1 else 0.4)
    assert change.ratio == pytest.approx(ratio, abs=0.12)


def test_leaps_and_first_steps_leave_the_healthy_dispersion_alone():
    torch.manual_seed(0)
    apart, unknown = ChangeWithin(50), ChangeWithin(50)
    for step in range(50):
        assert (apart.ratio is None) == (apart.expected is None) == (step < 8)
        values = 2 + 0.1 * torch.randn(4) + (5 if step in (10, 11, 30) else 0)
        apart.update(values, True)
        unknown.update(values)
    assert apart.ratio == pytest.approx(1.0, abs=0.2)
    assert unknown.ratio < 0.2  # for all it knows, workers that share their examples
    still = ChangeWithin(16)
    for _ in range(16):
        still.update(torch.ones(2))
    assert still.ratio is None


def test_a_sketch_is_unbiased():
    torch.manual_seed(0)
    a, b = torch.randn(2, 30, 17)
    found = torch.stack([GradientSketch(64, seed)("w", a) @ GradientSketch(64, seed)("w", b) for seed in range(400)])
    assert abs(found.mean() - (a * b).sum()) < 4 * found.std() / 20


@pytest.mark.parametrize("shape", [(1000, 300), (256, 17), (5, 3, 7), (700,), (), (0, 4)])
@pytest.mark.parametrize("k", [2, 50, 256])
def test_a_sketch_is_what_its_definition_says(shape, k):
    """Entry (r, c) has the sign s_r t_c and counts into sum r m + c mod k."""
    torch.manual_seed(0)
    gradient = torch.randn(shape)
    found = GradientSketch(k, seed=3)("w", gradient)
    matrix = gradient.flatten(1) if gradient.dim() > 1 else gradient.reshape(1, -1)
    rows, columns = matrix.shape
    s, t = (signs("w", f"sketch {side}", size, 1, 3)[:, 0] for side, size in (("rows", rows), ("columns", columns)))
    shift = max(m for m in range(1, max(2, int(0.618 * k) + 1)) if math.gcd(m, k) == 1)
    places = (shift * torch.arange(rows)[:, None] + torch.arange(columns)) % k
    expected = torch.zeros(k).index_add_(0, places.flatten(), (matrix * s[:, None] * t).flatten())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


# ---- one worker's gradient ------------------------------------------------------------------------------------------

ACCUMULATED, AT_ONCE = (SimpleNamespace(gradient_accumulation_steps=n) for n in (2, 1))


def backward(model, seed, factor=1.0):
    ids = torch.randint(4, 50, (2, 6), generator=torch.Generator().manual_seed(seed))
    (factor * model(input_ids=ids, labels=ids).loss).backward()


def test_a_workers_gradient_of_several_backward_passes(tokenizer):
    """Of one exactly; of several from the sketch of their sum, the first among them."""
    model = tiny_llama(tokenizer, hidden_size=32)
    source = OwnGradients(model, 256, pairs=False)
    source.begin(ACCUMULATED)
    backward(model, 0)  # a step that never ended
    model.zero_grad()
    for passes in (1, 2):
        source.begin(ACCUMULATED)
        for number in range(passes):
            backward(model, number)
            source.micro_batch(2, last=number == passes - 1)
        found, first = source.end(), source._sketches[0]
        square = sum(p.grad.square().sum() for p in model.parameters())
        assert found.square == pytest.approx(float(square), rel=1e-5 if passes == 1 else 0.4)
        assert found.examples == 2 * passes
        model.zero_grad()
    assert found.small / 4 == pytest.approx(float(first.square().sum()), rel=1e-5)  # of a mean of its own: times 2^2
    assert found.of_small == 2


def test_a_worker_without_examples_or_gradient(tokenizer):
    model = tiny_llama(tokenizer, hidden_size=32)
    source = OwnGradients(model, 16, pairs=False)
    source.begin(ACCUMULATED)
    for number in range(2):
        backward(model, number, factor=0.0)
        source.micro_batch(0, last=number == 1)  # unknown: the model is given embeddings
    found = source.end()
    assert found.square == 0
    assert found.small != found.small  # NaN: unknown


def test_a_worker_without_gradient_leaves_the_ratios_alone():
    agreement = WorkerAgreement(window=50, epoch=None)
    directions = (torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.75**0.5]))
    healthy = [[1.0 + step % 3 / 10, 1.1] for step in range(4)]
    for squares in (*healthy, [0.0, 1.0], [float("nan"), 1.0], *healthy):
        workers = [
            packed(WorkerGradient(square, square**0.5 * direction, 8.0, 1.0, 8.0, float("nan")), loss=None)
            for square, direction in zip(squares, directions, strict=True)
        ]
        figures, _ = agreement.update(torch.stack(workers), apart=False)
        assert ("consistency/direction" in figures) == (squares in healthy)
    assert figures["consistency/direction"] == pytest.approx(0.5)
    assert math.isfinite(figures["consistency/direction_ratio"])
    assert figures["consistency/grad_norm_dispersion_ratio"] > 0
    assert not any("loss" in name for name in figures)  # which no worker knew


def test_a_gradient_that_did_not_show_is_named(tokenizer):
    source = OwnGradients(tiny_llama(tokenizer, hidden_size=32), 16, pairs=False)
    source.begin(AT_ONCE)
    with pytest.raises(GradientRecordError, match="gradient of every parameter did not show"):
        source.micro_batch(1, last=True)
    source.close()


def test_what_cannot_be_recorded_by_example_is_named_once(tokenizer, caplog):
    model = tiny_llama(tokenizer, hidden_size=32)
    model.register_parameter("extra", torch.nn.Parameter(torch.zeros(2, 3)))
    examples = SingleExamples(model, pairs=False)
    for _ in range(2 * NOISE_STEPS):
        examples.begin()
        backward(model, 0)
        assert examples.mean_square() != examples.mean_square()  # NaN: unknown
        examples.close()
    (record,) = caplog.records
    assert "'extra' cannot be recorded by example" in record.getMessage()


def test_balancing_by_a_backward_pass_of_its_own_needs_ddps_hook(tokenizer):
    args = SimpleNamespace(gradient_balancing="pair", torch_compile=False)
    with pytest.raises(ValueError, match="gradient_balancing='pair' runs a backward pass of its own"):
        WorkerConsistencyCallback()._find_source(args, tiny_llama(tokenizer, hidden_size=32))


def test_single_examples_of_a_compiled_model_are_not_recorded(tokenizer, caplog):
    model = tiny_llama(tokenizer, hidden_size=32)
    forwards = [module.forward for module in model.modules()]
    examples = SingleExamples(model, pairs=False, compiled=True)
    examples.begin()
    assert [module.forward for module in model.modules()] == forwards
    assert examples.mean_square() != examples.mean_square()  # NaN: unknown
    (record,) = caplog.records
    assert "The model is compiled" in record.getMessage()
