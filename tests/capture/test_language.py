"""Per-sample gradients of language models: tables, shared tensors, position biases, dict batches."""

import pytest
import torch
from torch import nn

import taskarith_fast as ta
from taskarith_fast.capture import observe
from taskarith_fast.errors import ArgumentError
from taskarith_fast.inputs import rows
from taskarith_fast.loops.fisher import Squares
from taskarith_fast.models.maskable import maskable_names
from tests.capture.by_the_book import assert_close
from tests.models.language import NAMES, texts, tiny_language_model

transformers = pytest.importorskip("transformers")


def _weights(y):
    return torch.linspace(-1, 2, y.numel()).view(y.shape)


def _observed(model, batch, **options):
    found = Squares(dict(model.named_parameters()))
    with observe(model, found, **options) as capture:
        output = capture.forward(batch)
        for _ in range(2):  # a second pass over the same graph adds the same
            capture.backward(output, _weights(output[0]).expand_as(output), retain_graph=True)
    return {name: fisher / 2 for name, fisher in found.fisher.items()}


def _squares(model, batch):
    """By autograd, one text at a time."""
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in parameters.items()}
    for b in range(len(batch["input_ids"])):
        y = model(**rows(batch, slice(b, b + 1)))[0]
        for name, gradient in zip(
            parameters, torch.autograd.grad((y * _weights(y)).sum(), parameters.values()), strict=True
        ):
            total[name] += gradient.double() ** 2
    return total


@pytest.mark.parametrize("checkpoint", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_told_its_per_sample_gradients(name, checkpoint):
    # As many texts as tokens: a table of positions must not be taken for one of words.
    model, batch = tiny_language_model(name), texts(name, count=7, length=7)
    assert_close(_observed(model, batch, checkpoint=checkpoint), _squares(model, batch), 2e-5)


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_the_whole_batch_as_one_sample_gives_the_square_of_the_summed_gradient(name):
    model, batch = tiny_language_model(name), texts(name)
    output = model(**batch)
    (output * _weights(output[0])).sum().backward()
    truth = {n: p.grad.double() ** 2 for n, p in model.named_parameters()}
    assert_close(_observed(model, batch, whole_batch=True), truth, 2e-5)


class _Twice(nn.Module):
    def __init__(self, use):
        super().__init__()
        self.weight, self.scale, self.use = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4)), use

    def forward(self, input_ids):
        return self.use(nn.functional.embedding(input_ids, self.weight), self.weight, self.scale).mean(1)


@pytest.mark.parametrize(
    ("use", "names"),
    [
        (lambda x, w, s: nn.functional.linear(x @ w, w).tanh() * s, ["weight", "scale"]),
        (lambda x, w, s: nn.functional.linear((nn.functional.linear(x, w) * s).tanh(), w), ["weight", "scale"]),
        (lambda x, w, s: ((x * s).tanh() * s).tanh() * s, ["weight", "scale"]),
        (lambda x, w, s: (x * s).tanh() @ w.t(), ["weight", "scale"]),
    ],
)
def test_the_gradients_of_several_uses_are_added(use, names):
    torch.manual_seed(0)
    model, batch = _Twice(use), {"input_ids": torch.randint(4, (3, 5))}
    observed, truth = _observed(model, batch, names=names), _squares(model, batch)
    assert_close({n: observed[n] for n in names}, {n: truth[n] for n in names}, 2e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_table_that_is_multiplied_by_in_an_unknown_way_is_refused_or_left_out(frozen):
    """Tied embeddings, whose gradient at the head would be lost; a frozen table takes no part."""
    model = _Twice(lambda x, w, s: torch.einsum("bsd,vd->bsv", x * s, w))
    batch = {"input_ids": torch.randint(4, (3, 5))}
    if not frozen:
        with pytest.raises(
            ArgumentError, match=r"weight: no rule gives .* where it is used in einsum; leave it out of"
        ):
            _observed(model, batch)
    observed, truth = _observed(model, batch, names=["scale"]), _squares(model, batch)
    assert_close({"scale": observed["scale"]}, {"scale": truth["scale"]}, 2e-5)


def test_uses_that_do_not_add_up_are_refused():
    model = _Twice(lambda x, w, s: nn.functional.linear(x * s, w, s))
    with pytest.raises(ArgumentError, match="scale: it is used in different ways in a pass, elementwise; leave it out"):
        _observed(model, {"input_ids": torch.randint(4, (3, 5))}, names=["scale"])


def test_a_position_bias_of_an_unknown_kind_is_refused():
    model = tiny_language_model("t5")
    attention = model.encoder.block[0].layer[0].SelfAttention
    attention.__class__ = type("OtherAttention", (type(attention),), {})
    with pytest.raises(ArgumentError, match=r"relative_attention_bias.weight: no rule gives .* in OtherAttention"):
        _observed(model, texts("t5"))
    assert _observed(model, texts("t5"), names=["shared.weight"])["shared.weight"].any()


@pytest.mark.parametrize("name", ["bert", "t5 gated"])
@pytest.mark.parametrize("labels", ["exact", "label"])
def test_fisher_diagonals_of_texts_are_the_definitions(name, labels):
    model, batch = tiny_language_model(name), texts(name, count=5)
    given = torch.tensor([0, 3, 1, 2, 0])
    head = nn.Linear(24, 4) if name == "bert" else None
    fisher = ta.fisher_diagonal(model, [(batch, given)], labels=labels, head=head, batch_split=2)
    parameters = list(model.parameters())
    truth = {n: torch.zeros(p.shape, dtype=torch.float64) for n, p in model.named_parameters()}
    for b in range(5):
        y = model(**rows(batch, slice(b, b + 1)))
        log_p = (y if head is None else head(y)).log_softmax(-1)[0]
        for c in range(4) if labels == "exact" else [int(given[b])]:
            weight = float(log_p[c].exp()) if labels == "exact" else 1.0
            for n, g in zip(truth, torch.autograd.grad(log_p[c], parameters, retain_graph=True), strict=True):
                truth[n] += weight * g.double() ** 2 / 5
    assert_close(fisher, truth, 5e-5)


@pytest.mark.parametrize("name", NAMES)
def test_calibration_chooses_among_the_maskable_weights_alone(name):
    model, batch = tiny_language_model(name), texts(name, count=6)
    masks = ta.calibrate(model, [batch], density=0.2, rounds=2, head=None)
    names = maskable_names(n for n, _ in model.named_parameters())
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    assert tuple(masks) == names
    assert sum(masks.count(n) for n in masks) == int(0.2 * sum(sizes[n] for n in names))
