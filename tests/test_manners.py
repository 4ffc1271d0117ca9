# SPDX-License-Identifier: Apache-2.0
"""The operations in the machinery of PyTorch: ranks, checkpoints, compilers, graphs."""

import subprocess
import sys

import pytest
import torch
from batch_helpers import each, packed, same_bits
from distributed_helpers import spawn
from test_compile import FUNCTIONS
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import rlkern
from rlkern.testing.cases import Case, make_batch

CASE = Case("manners", B=4, T=5, V=33, keep="narrow", correction=True, temperature="rows")
TERMS = {"kl_coef": 0.3, "kl_estimator": "k2", "entropy_coef": 0.2}
FORMS = pytest.mark.parametrize("inplace", (False, True), ids=("functional", "in place"))
SCORERS = pytest.mark.parametrize("scorer", ("grpo", "gspo", "token_logprob"))


def loss_of(scorer, batch, logits, inplace=False, **options):
    """Returns a scalar that either operation makes of logits."""
    if scorer == "token_logprob":
        out = rlkern.token_logprob(
            logits, batch.token, mask=batch.mask, inplace=inplace, **batch.softmax
        )
        return (2 * out.logprob + 3 * out.entropy + 5 * out.lse).sum()
    return rlkern.policy_loss(
        logits, batch.token, batch.advantage, batch.mask, algorithm=scorer, inplace=inplace,
        **batch.rows, **batch.softmax, **TERMS, **options,
    ).loss  # fmt: skip


def hidden_and_head():
    random = torch.Generator().manual_seed(3)
    head = torch.nn.Linear(6, CASE.V)
    with torch.no_grad():
        for x in head.parameters():
            x.copy_(torch.randn(x.shape, generator=random))
    return torch.randn(CASE.B, CASE.T, 6, generator=random), head


def gradients_in_parallel(rank: int) -> dict:
    """Returns the head's gradients when every rank has two of the four sequences."""
    found = {}
    for scorer in ("grpo", "gspo"):
        for inplace in (False, True):
            hidden, head = hidden_and_head()
            batch = make_batch(CASE, torch.float32)
            # DDP takes the mean over ranks: each counts its share of the whole as 2 of 2 ranks.
            count = batch.mask.any(-1).sum() / 2
            mine = each(batch, lambda x: x[2 * rank : 2 * rank + 2])
            weight = rlkern.aggregate.token_weight(mine.mask, "sequence_token_mean", count=count)
            model = DistributedDataParallel(head)
            logits = model(hidden[2 * rank : 2 * rank + 2])
            loss_of(scorer, mine, logits, inplace, weight=weight).backward()
            found[scorer, inplace] = [x.grad for x in head.parameters()]
    return found


@pytest.fixture(scope="module")
def parallel(tmp_path_factory) -> list[dict]:
    return spawn(gradients_in_parallel, 2, tmp_path_factory.mktemp("parallel"))


@FORMS
@pytest.mark.parametrize("scorer", ("grpo", "gspo"))
def test_data_parallel_ranks_with_global_counts_get_the_gradient_of_one_process(
    parallel, scorer, inplace
):
    hidden, head = hidden_and_head()
    batch = make_batch(CASE, torch.float32)
    weight = rlkern.aggregate.token_weight(batch.mask, "sequence_token_mean")
    loss_of(scorer, batch, head(hidden), weight=weight).backward()
    assert same_bits(parallel[0][scorer, inplace], parallel[1][scorer, inplace])
    for got, expected in zip(parallel[0][scorer, inplace], head.parameters()):
        torch.testing.assert_close(got, expected.grad)


@SCORERS
@FORMS
@pytest.mark.parametrize("reentrant", (False, True))
def test_checkpointing_head_and_loss_changes_no_bit_of_the_gradients(scorer, inplace, reentrant):
    gradients = []
    for run in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=reentrant)):
        hidden, head = hidden_and_head()
        batch = make_batch(CASE, torch.float32)
        hidden.requires_grad_()
        run(lambda x, b=batch, h=head: loss_of(scorer, b, h(x), inplace), hidden).backward()
        gradients.append([hidden.grad, *(x.grad for x in head.parameters())])
    assert same_bits(*gradients)


def numbers_as_arguments(scorer, inplace):
    """Returns the loss as a function of numbers too."""

    def function(leaf, batch, temperature, clip_low, kl_coef):
        softmax = {"temperature": temperature, "keep": batch.keep, "inplace": inplace}
        if scorer == "token_logprob":
            out = rlkern.token_logprob(leaf * 1, batch.token, mask=batch.mask, **softmax)
            return (out.logprob + 3 * out.entropy).sum()
        return rlkern.policy_loss(
            leaf * 1, batch.token, batch.advantage, batch.mask, algorithm=scorer,
            clip_low=clip_low, clip_high=2 * clip_low, kl_coef=kl_coef, entropy_coef=kl_coef,
            **batch.rows, **softmax,
        ).loss  # fmt: skip

    return function


@SCORERS
@FORMS
def test_two_compilations_serve_all_lengths_batches_and_numbers(scorer, inplace):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    plain = numbers_as_arguments(scorer, inplace)
    compiled = torch.compile(plain, backend=counter, fullgraph=True)
    # The second call has every number changed: what has changed once is a variable from then on.
    # A temperature of 1 costs nothing, by a graph of its own; so it is not among these.
    for B, T, *numbers in (
        (2, 3, 0.7, 0.2, 0.04),
        (3, 4, 0.8, 0.25, 0.1),
        (3, 7, 1.3, 0.1, 0.5),
        (5, 4, 0.6, 0.3, 0.001),
        (2, 9, 2.5, 0.15, 0.02),
    ):
        batch = make_batch(Case("numbers", B=B, T=T, V=33, keep="narrow"), torch.float32)
        leaf = batch.logits.clone().requires_grad_()
        results = []
        for function in (compiled, plain):
            loss = function(leaf, batch, *numbers)
            results.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
        assert same_bits(*results)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("scorer", ("grpo", "gspo"))
def test_compiled_too_writing_over_logits_bumps_their_version(scorer):
    torch._dynamo.reset()
    batch = make_batch(CASE, torch.float32)
    leaf = batch.logits.clone().requires_grad_()
    logits = leaf * 1
    before = logits._version

    def step(x):
        return loss_of(scorer, batch, x, inplace=True)

    torch.compile(step, backend="aot_eager", fullgraph=True)(logits)
    assert logits._version > before


@SCORERS
@FORMS
def test_a_gradient_that_is_differentiated_again_raises(scorer, inplace):
    batch = make_batch(CASE, torch.float32)
    leaf = batch.logits.clone().requires_grad_()
    loss = loss_of(scorer, batch, leaf * 1, inplace)
    with pytest.raises(RuntimeError, match="double backward"):
        (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
        # As a term of a penalty, where a gradient taken for a constant would go unnoticed.
        (grad * leaf).sum().backward()


def on_meta(batch):
    return each(batch, lambda x: x.to("meta"))


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "packed" not in name])
def test_no_function_looks_at_values_of_its_device(name, monkeypatch):
    monkeypatch.delenv("RLKERN_CHECK_VALUES")
    # Nothing can be read from the meta device: .item(), bool() and nonzero() raise on it.
    batch = on_meta(make_batch(CASE, torch.float32))
    for x in FUNCTIONS[name](batch, batch.logits.requires_grad_()):
        assert x.device.type == "meta"


@pytest.mark.parametrize("scorer", ("grpo", "gspo", "gmpo", "token_logprob"))
def test_packed_rows_are_laid_out_without_looking_at_the_device(scorer, monkeypatch):
    monkeypatch.delenv("RLKERN_CHECK_VALUES")
    batch = on_meta(packed(make_batch(CASE, torch.float32)))
    assert loss_of(scorer, batch, batch.logits.requires_grad_()).device.type == "meta"


GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.gpu
@GPU
@SCORERS
@FORMS
def test_a_step_on_a_gpu_synchronises_nowhere(scorer, inplace, monkeypatch):
    monkeypatch.delenv("RLKERN_CHECK_VALUES")
    batch = make_batch(CASE, torch.bfloat16, "cuda")
    leaf = batch.logits.clone().requires_grad_()
    loss_of(scorer, batch, leaf * 1, inplace).backward()  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss_of(scorer, batch, leaf * 1, inplace).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@GPU
@SCORERS
@FORMS
def test_a_step_is_captured_in_a_cuda_graph_and_replays_to_the_same_bits(
    scorer, inplace, monkeypatch
):
    monkeypatch.delenv("RLKERN_CHECK_VALUES")
    batch = make_batch(CASE, torch.bfloat16, "cuda")
    leaf = batch.logits.clone().requires_grad_()

    def step():
        loss = loss_of(scorer, batch, leaf * 1, inplace)
        return loss, torch.autograd.grad(loss, leaf)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        expected = step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = step()
    for _ in range(2):
        graph.replay()
        assert same_bits(got, expected)


def test_importing_a_submodule_first_leaves_every_public_name_as_it_is():
    code = (
        "import rlkern.algorithms, rlkern.ops.policy_loss, rlkern.sampling, rlkern\n"
        "assert rlkern.algorithms()['grpo'].name == 'grpo'\n"
        "assert not [name for name in rlkern.__all__ if not hasattr(rlkern, name)]\n"
        "assert callable(rlkern.policy_loss) and rlkern.sampling.mixed_groups"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
