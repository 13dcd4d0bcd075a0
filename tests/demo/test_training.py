import torch

from fisherscope.demo.tokenizer import BEGIN_ID, END_ID
from fisherscope.demo.training import new_model, text_batches
from fisherscope.likelihoods import CausalLM
from fisherscope.studies.tuning import Schedule, fine_tune


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_model_is_small_tied_and_seeded(tokenizer):
    # Catches weights from the global generator: another seed must matter, the global state not.
    first, again = new_model(tokenizer, 0), new_model(tokenizer, 0)
    torch.rand(3)
    other = new_model(tokenizer, 1)
    state = first.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in again.state_dict().items())
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.equal(state[name], other.state_dict()[name])
    assert first.lm_head.weight is first.model.embed_tokens.weight
    assert all(tensor.dtype == torch.float32 for tensor in state.values())


def test_the_model_has_two_to_four_million_parameters():
    # Catches a size that no longer fits the demo's time.
    class Full:
        def __len__(self):
            return 4096

    count = sum(parameter.numel() for parameter in new_model(Full(), 0).parameters())
    assert 2_000_000 < count < 4_000_000


def test_windows_are_runs_of_the_text_after_a_begin_token(tokenizer):
    # Catches windows that mix two streams or lose the begin token that analysed rows have.
    texts = ["one two three four five six seven " * 10, "eight nine ten eleven twelve " * 10]
    streams = [([texts[0]], 2), ([texts[1]], 1)]
    batch = text_batches(tokenizer, streams, 8)(generator())
    ids = batch.inputs["input_ids"]
    assert ids.shape == (3, 8) and torch.equal(batch.labels, ids)
    assert (ids[:, 0] == BEGIN_ID).all()
    for row, text in zip(ids.tolist(), [texts[0], texts[0], texts[1]], strict=True):
        assert tokenizer.decode([t for t in row[1:] if t != END_ID]) in text


def test_windows_reach_every_part_of_the_text(tokenizer):
    # Catches offsets drawn from a part of the stream only.
    text = "".join(chr(ord("a") + i) + "\n" for i in range(26))
    draw = text_batches(tokenizer, [([text], 200)], 4)
    seen = set(draw(generator()).inputs["input_ids"].flatten().tolist())
    assert seen >= set(tokenizer(text, add_special_tokens=False)["input_ids"][:-2])


def test_training_lowers_the_loss_and_repeats_itself(tokenizer, small):
    # Catches a step without effect, and randomness from outside of the seed.
    def losses(seed):
        model = new_model(tokenizer, 0)
        draw = text_batches(tokenizer, [(small.documents["code"], 2)], 32)
        schedule = Schedule(steps=12, peak=3e-3)
        found = fine_tune(
            model, draw, schedule, likelihood=CausalLM(), seed=seed, label="x", progress=False
        )
        assert not model.training
        assert all(parameter.grad is None for parameter in model.parameters())
        return found

    first = losses(0)
    assert len(first) == 12 and first[-1] < first[0] - 0.5
    torch.rand(1)
    assert losses(0) == first
    assert losses(1) != first


def test_training_works_inside_no_grad(tokenizer, small):
    # Catches a build that dies because the caller has switched gradients off.
    draw = text_batches(tokenizer, [(small.documents["code"], 1)], 16)
    with torch.no_grad():
        model = new_model(tokenizer, 0)
        before = model.model.norm.weight.clone()
        fine_tune(
            model,
            draw,
            Schedule(steps=1, peak=1e-3),
            likelihood=CausalLM(),
            seed=0,
            label="x",
            progress=False,
        )
    assert not torch.equal(model.model.norm.weight, before)


def test_the_progress_bar_shows_rate_and_loss(tokenizer, small, capsys):
    # Catches a bar that is silent, without the loss, or on standard output.
    model = new_model(tokenizer, 0)
    draw = text_batches(tokenizer, [(small.documents["code"], 1)], 16)
    schedule = Schedule(steps=2, peak=1e-3)
    fine_tune(
        model, draw, schedule, likelihood=CausalLM(), seed=0, label="base model", progress=True
    )
    shown = capsys.readouterr()
    assert "base model" in shown.err and "loss=" in shown.err and "step" in shown.err
    assert shown.out == ""
    fine_tune(
        model, draw, schedule, likelihood=CausalLM(), seed=0, label="base model", progress=False
    )
    assert capsys.readouterr().err == ""
