"""Linearized language models against torch.func.jvp."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

import taskarith_fast as ta
from taskarith_fast.models import linear_layer_names
from taskarith_fast.ops.linear import linear_route
from tests.models.language import NAMES, SEQ2SEQ, texts, tiny_language_model

transformers = pytest.importorskip("transformers")


def _fill(lin, spread=0.05):
    g = torch.Generator().manual_seed(2)
    for _, tau in lin.named_tau():
        tau.data = (spread * torch.randn(tau.shape, generator=g)).to(tau.dtype)


def _assert_equals_jvp(model, lin, batch, read, tolerance):
    _fill(lin)
    tau = {n: p.detach().clone().requires_grad_() for n, p in lin.named_tau()}
    weights = {n: p.detach() for n, p in model.named_parameters() if n in tau}
    with sdpa_kernel(SDPBackend.MATH):
        value, tangent = jvp(lambda w: read(functional_call(model, w, (), batch)), (weights,), (tau,))
    out, truth = read(lin(**batch)), value + tangent
    assert tangent.abs().max() > 0.01
    torch.testing.assert_close(out, truth, rtol=tolerance, atol=tolerance)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out.dtype)
    (out * cotangent).sum().backward()
    grads = torch.autograd.grad((truth * cotangent).sum(), list(tau.values()))
    largest = max(float(g.abs().max()) for g in grads)
    for (n, p), grad in zip(lin.named_tau(), grads, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=tolerance, atol=tolerance * largest, msg=n)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 5e-5)])
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_equal_those_of_func_jvp(name, dtype, tolerance):
    model = tiny_language_model(name, dtype)
    _assert_equals_jvp(model, ta.linearize(model), texts(name), lambda out: out, tolerance)


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "T5ForConditionalGeneration"])
def test_models_of_transformers_are_taken_as_they_are(name):
    shape = {"vocab_size": 60, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 3}
    if name.startswith("T5"):
        config = transformers.T5Config(**shape, feed_forward_proj="gated-gelu", decoder_start_token_id=0)
        batch = {"decoder_input_ids": texts("t5")["answers"][:, 0].clamp_min(0)}
    else:
        config = transformers.BertConfig(
            vocab_size=60, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40
        )
        batch = {}
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).double().eval()
    batch |= texts("bert")
    # transformers computes the statistics of T5's norm in float32, whatever the type of the model.
    tolerance = 1e-5 if name.startswith("T5") else 1e-10
    _assert_equals_jvp(model, ta.linearize(model), batch, lambda out: out.logits, tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_zero_tau_is_the_plain_model_bit_by_bit(name):
    model, batch = tiny_language_model(name), texts(name)
    # Where a mask is trained, torch attends by another kernel; without gradients it has one.
    with linear_route("linear"), torch.no_grad():
        assert torch.equal(ta.linearize(model)(**batch), model(**batch))


@pytest.mark.parametrize("name", SEQ2SEQ)
def test_what_has_no_tangent_stays_and_tied_tensors_have_one(name):
    model, batch = tiny_language_model(name, torch.float64), texts(name)
    names = linear_layer_names([n for n, _ in model.named_parameters()], "p1")
    lin = ta.linearize(model, names=names)
    assert lin.names == names
    _assert_equals_jvp(model, lin, batch, lambda out: out, 1e-10)
    tied = [n for n in ta.linearize(model).names if "embed_tokens" in n or n in ("shared.weight", "lm_head.weight")]
    assert tied == (["shared.weight", "lm_head.weight"] if name == "t5 gated" else ["shared.weight"])


@pytest.mark.parametrize("name", ["bert", "t5 gated"])
def test_recomputed_blocks_give_the_same_gradients(name):
    grads = []
    for checkpointing in (False, True):
        lin = ta.linearize(tiny_language_model(name), checkpointing=checkpointing)
        _fill(lin)
        lin(**texts(name)).square().sum().backward()
        grads.append([p.grad for _, p in lin.named_tau()])
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_training_a_linearized_t5_lowers_the_loss():
    model, batch = tiny_language_model("t5"), texts("t5", count=8)
    lin, labels = ta.linearize(model), torch.arange(8) % 4
    optimizer = torch.optim.AdamW([p for _, p in lin.named_tau()], lr=3e-3)
    losses = []
    for _ in range(10):
        loss = nn.functional.cross_entropy(lin(**batch), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
