import contextlib
import gc
import weakref
from collections import Counter
from dataclasses import replace

import pytest
import torch
import transformers
from transformers import BertConfig, DistilBertConfig

from benchmarks import vram_accuracy
from benchmarks.vram_accuracy import plain_step
from vram_budget import tracing
from vram_budget.allocator import MIB
from vram_budget.budget import TRACED_PARTS
from vram_budget.errors import InvalidValue
from vram_budget.recorder import Recorder
from vram_budget.tracing import StepOptions, trace

DISTILBERT = DistilBertConfig(num_labels=4)
SMALL = DistilBertConfig(
    num_labels=4,
    dim=64,
    hidden_dim=128,
    n_layers=2,
    n_heads=4,
    vocab_size=500,
    max_position_embeddings=128,
)
NARROW = DistilBertConfig(num_labels=4, dim=384, hidden_dim=1536, n_layers=2)
SMALL_BERT = BertConfig(
    num_labels=4,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    vocab_size=500,
)


def live_at(events, stop):
    """Bytes of each category that live after event `stop`."""
    live = Counter()
    for allocation, made in events[: stop + 1]:
        live[allocation.category] += allocation.size if made else -allocation.size
    return live


def peak_without_workspaces(found):
    peak, place = found.peak()
    return peak - live_at(found.events, place)["workspaces"]


# against real allocations


CONFIGS = {
    "narrow": (NARROW, (8, 96)),
    "bert": (SMALL_BERT, (6, 33)),
    "distilbert": (DISTILBERT, (4, 32)),
}
# Each option with one configuration, and the options of the optimizer with two.
CASES = {
    "fused": ("narrow distilbert", {}, plain_step),
    "foreach": ("bert narrow", {"implementation": "foreach"}, plain_step),
    "single": ("bert", {"implementation": "single"}, plain_step),
    "adamw": ("distilbert", {"optimizer": "adamw"}, plain_step),
    "sgd": ("narrow", {"optimizer": "sgd"}, plain_step),
    "adafactor": ("bert", {"optimizer": "adafactor"}, plain_step),
    "pure": ("narrow", {"precision": "pure bf16"}, plain_step),
    "accumulated": ("distilbert", {}, vram_accuracy.accumulated_step),
    "zero": ("bert", {}, vram_accuracy.late_zero_grad_step),
    "outputs": ("distilbert", {}, vram_accuracy.kept_outputs_step),
}


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:TF32 acceleration"
)  # said whenever oneDNN is switched off
@pytest.mark.parametrize(
    "case, name",
    [(case, name) for case in CASES for name in CASES[case][0].split()],
)
@pytest.mark.slow
def test_the_traced_peak_is_the_real_one(case, name):
    config, shape = CONFIGS[name]
    _, changes, step = CASES[case]
    options = StepOptions(attention="eager", **changes)
    found = peak_without_workspaces(trace(step, config, [shape] * 2, options))
    real = vram_accuracy.real_peak(config, *shape, options, step)
    assert found / MIB == pytest.approx(real, rel=0.005)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "pure fp16"])
@pytest.mark.slow
def test_half_precision_takes_less(precision):
    peaks = [
        peak_without_workspaces(
            trace(
                plain_step,
                SMALL,
                [(32, 128)] * 2,
                StepOptions(precision=kind, capability=(8, 0)),
            )
        )
        for kind in ("fp32", precision)
    ]
    assert peaks[1] < (0.65 if "pure" in precision else 0.9) * peaks[0]


def test_both_kinds_of_autocast_take_the_same():
    sizes = [
        trace(
            plain_step,
            SMALL,
            [(8, 64)] * 2,
            StepOptions(precision=kind, capability=(8, 0)),
        ).peak()[0]
        for kind in ("fp16", "bf16")
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.001)


@pytest.mark.parametrize(
    "change, flash",
    [
        (dict(precision="bf16", mask=False, capability=(8, 0)), True),
        (dict(precision="pure fp16", mask=False, capability=(9, 0)), True),
        (
            dict(precision="bf16", mask=True, capability=(8, 0)),
            False,
        ),  # flash attention takes no mask
        (
            dict(precision="fp16", mask=False, capability=(7, 5)),
            False,
        ),  # nor an older card
        (dict(precision="fp32", mask=False, capability=(8, 0)), False),  # nor fp32
    ],
)
def test_flash_attention_where_the_card_would_choose_it(change, flash):
    ops = {
        a.op
        for a, _ in trace(
            plain_step, SMALL, [(4, 64)] * 2, StepOptions(**change)
        ).events
    }
    assert ("_scaled_dot_product_flash_attention" in ops) == flash
    assert ("_scaled_dot_product_efficient_attention" in ops) != flash


GROUPED = transformers.EuroBertConfig(
    num_labels=4,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=500,
    pad_token_id=0,
)
UNEVEN = DistilBertConfig(num_labels=4, dim=52, hidden_dim=64, n_layers=1, n_heads=2)


@pytest.mark.parametrize(
    "config, options",
    [
        (SMALL, StepOptions(precision="bf16")),
        (SMALL, StepOptions(precision="pure bf16", mask=False)),
        (UNEVEN, StepOptions(capability=(8, 6))),
        (UNEVEN, StepOptions(precision="fp16")),
        (GROUPED, StepOptions(mask=False)),
    ],
)
def test_a_step_without_a_fused_kernel_is_refused(config, options):
    """PyTorch computes it score by score, in fp32: gigabytes more."""
    with pytest.raises(InvalidValue, match="no fused attention .*attention='eager'"):
        trace(plain_step, config, [(2, 16)] * 2, options)
    eager = replace(options, attention="eager")
    assert trace(plain_step, config, [(2, 16)] * 2, eager).events


def test_the_same_steps_have_a_kernel_on_another_card_or_with_a_mask():
    for config, options in (
        (SMALL, StepOptions(precision="bf16", capability=(8, 0))),
        (UNEVEN, StepOptions()),
        (GROUPED, StepOptions()),
    ):
        assert trace(plain_step, config, [(2, 16)] * 2, options).events


def test_gradients_live_through_the_forward_pass_if_they_are_cleared_late():
    early, late = (
        trace(step, SMALL, [(32, 128)] * 3, StepOptions(optimizer="sgd")).peak()[0]
        for step in (plain_step, vram_accuracy.late_zero_grad_step)
    )
    assert late > early


@pytest.mark.slow
def test_equal_steps_after_the_second_are_its_copies():
    options = StepOptions(implementation="foreach")
    step = vram_accuracy.accumulated_step
    with tracing.FakeTensorMode(allow_non_fake_inputs=True):
        with tracing.no_init_weights():
            model = tracing.new_model(SMALL, options)
        optimizer = tracing.make_optimizer(model, options)
        with tracing.cuda_kernels_on_cpu(model, options):
            really = Recorder(model, optimizer, options).record(step, [(8, 64)] * 5)

    def told(events):
        names = {}
        for a, _ in events:
            names.setdefault(a, len(names))
        return [
            (names[a], a.size, a.op, a.category, a.phase, a.step, made)
            for a, made in events
        ]

    assert told(trace(step, SMALL, [(8, 64)] * 5, options).events) == told(really)


# any step


def test_the_phases_are_found_in_any_step():
    """Clipped gradients, a loss of its own, the gradients cleared first."""

    def step(model, batch, optimizer):
        optimizer.zero_grad()
        labels = batch.pop("labels")
        logits = model(**batch).logits
        torch.autograd.backward([(logits.mean(1) - labels).square().mean()])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    events = trace(step, SMALL, [(4, 16)] * 2).events
    phases = [a.phase for a, made in events if made and a.step == 2]
    assert list(dict.fromkeys(phases)) == ["forward", "backward"]  # fused: no third
    assert {a.category for a, _ in events} == {*TRACED_PARTS, "batch"}
    foreach = StepOptions(implementation="foreach")
    events = trace(step, SMALL, [(4, 16)] * 2, foreach).events
    phases = [a.phase for a, made in events if made and a.step == 2]
    assert list(dict.fromkeys(phases)) == ["forward", "backward", "optimizer"]


def test_parts_of_a_batch_go_forward_and_backward_in_turn():
    events = trace(vram_accuracy.accumulated_step, SMALL, [(6, 16)] * 2).events
    phases = [a.phase for a, made in events if made and a.step == 1]
    turns = [phase for i, phase in enumerate(phases) if phases[i - 1 : i] != [phase]]
    assert turns == ["forward", "backward"] * 3 + ["optimizer"]


def test_what_a_step_returns_lives_until_the_next_one_returns():
    def step(model, batch, optimizer):
        plain_step(model, batch, optimizer)
        return torch.ones(12_345)

    events = trace(step, SMALL, [(4, 16), (4, 16)]).events
    kept = [(a.step, made) for a, made in events if a.size == 4 * 12_345]
    assert kept == [(1, True), (2, True), (1, False)]
    categories = {a.category for a, _ in events if a.size == 4 * 12_345}
    assert categories == {"temporaries"}  # no activation of the step that follows


def test_another_task_of_the_same_model():
    """A language model over all tokens, in place of a classifier over the first one."""
    options = StepOptions(auto_class=transformers.AutoModelForMaskedLM)

    def step(model, batch, optimizer):
        model(batch["input_ids"], labels=batch["input_ids"]).loss.backward()
        optimizer.step()

    events = trace(step, SMALL, [(4, 16)] * 2, options).events
    assert any(a.size == 4 * 16 * 500 * 4 for a, _ in events)  # the logits


def test_an_evaluation_has_no_backward_pass():
    found = trace(vram_accuracy.forward_pass, SMALL, [(4, 16)] * 2)
    assert {a.phase for a, _ in found.events} == {"load", "forward"}


# what would be predicted wrong


def every(n):
    """Make a step that updates only at every n-th call."""
    calls = 0

    def step(model, batch, optimizer):
        nonlocal calls
        calls += 1
        model(**batch).loss.backward()
        if calls % n == 0:
            optimizer.step()
            optimizer.zero_grad()

    return step


@pytest.mark.parametrize("n", [2, 4])
def test_gradients_that_add_up_over_calls_are_refused(n):
    with pytest.raises(InvalidValue, match=r"optimizer.step\(\): let one call"):
        trace(every(n), SMALL, [(2, 8)] * 3)
    assert trace(every(1), SMALL, [(2, 8)] * 3).flops


def without_update(model, batch, optimizer):
    model(**batch).loss.backward()
    optimizer.zero_grad()


def test_forward_and_backward_alone_are_traced():
    found = trace(without_update, SMALL, [(2, 8)] * 3).events
    assert {a.phase for a, _ in found} == {"load", "forward", "backward"}


def test_a_step_that_leaves_more_each_time_is_refused():
    losses = []

    def leaking(model, batch, optimizer):
        loss = model(**batch).loss
        loss.backward(retain_graph=True)
        losses.append(loss)
        optimizer.step()
        optimizer.zero_grad()

    with pytest.raises(InvalidValue, match=r"Each step leaves \d\.\d\d MiB more"):
        trace(leaking, SMALL, [(8, 64)] * 3)

    def keeping(model, batch, optimizer):
        losses.append(plain_step(model, batch, optimizer))

    assert trace(keeping, SMALL, [(8, 64)] * 3).flops


TEACHER = transformers.AutoModelForSequenceClassification.from_config(SMALL_BERT)
WEIGHTS = torch.ones(4)


def distilled(model, batch, optimizer):
    """Learn from another model, which was there before."""
    labels = batch.pop("labels")
    with torch.no_grad():
        wanted = TEACHER(**batch).logits
    logits = model(**batch).logits
    loss = torch.nn.functional.cross_entropy(logits, labels, weight=WEIGHTS)
    (loss + (logits - wanted).square().mean()).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_the_weights_of_another_model_are_counted():
    events = trace(distilled, SMALL, [(8, 64)] * 3).events
    outside = [a for a, made in events if made and a.category == "weights" and a.step]
    tensors = [*TEACHER.state_dict().values(), WEIGHTS]
    used = sum(t.numel() * t.element_size() for t in tensors)
    positions = 2 * 512 * 8  # buffers that are not saved, and of which parts are used
    assert used <= sum(a.size for a in outside) <= used + positions
    assert {a.step for a in outside} == {1}  # they are there from then on
    gone = {a for a, made in events if not made}
    assert not gone.intersection(outside)


def test_constants_of_the_step_are_none_of_its_weights():
    def step(model, batch, optimizer):
        scale = torch.tensor([1.0, 2.0, 3.0, 4.0])
        loss = (model(**batch).logits * scale * torch.tensor(0.5)).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    events = trace(step, SMALL, [(2, 8)] * 3).events
    assert all(not a.step for a, _ in events if a.category == "weights")


def autocast_step(device_type):
    def step(model, batch, optimizer):
        with torch.autocast(device_type, torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def test_autocast_of_the_step_is_that_of_the_options():
    def own_loss(model, batch, optimizer):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    eager = {"attention": "eager"}  # whose softmax is in fp32, as the loss
    bf16 = StepOptions(precision="bf16", **eager)
    theirs = trace(own_loss, SMALL, [(8, 64)] * 3, bf16)
    found = trace(autocast_step("cpu"), SMALL, [(8, 64)] * 3, StepOptions(**eager))
    assert found.peak()[0] == theirs.peak()[0]
    made = [Counter((a.op, a.size) for a, _ in one.events) for one in (found, theirs)]
    assert made[0] == made[1]


@pytest.mark.parametrize(
    "name, options",
    [
        ("softmax", StepOptions(capability=(8, 0))),
        ("log_softmax", StepOptions(attention="eager")),
    ],
    ids=["softmax", "log_softmax"],
)
def test_softmax_in_a_step_with_autocast_is_in_fp32_as_on_cuda(name, options):
    def step(model, batch, optimizer):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch["input_ids"]).logits
            loss = getattr(torch.nn.functional, name)(logits, -1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    events = trace(step, SMALL, [(8, 64)] * 3, options).events
    assert {a.size for a, _ in events if a.op == f"_{name}"} == {8 * 4 * 4}


@pytest.mark.parametrize("own", [False, True])
def test_the_copies_of_autocast_end_with_the_backward_pass(own):
    """Each weight of a product has one while its layer may need it, and no longer."""
    step = autocast_step("cpu") if own else plain_step
    options = StepOptions(attention="eager", precision="fp32" if own else "bf16")
    events = trace(step, SMALL, [(2, 8)] * 2, options).events
    assert any(a.op == "_to_copy" and a.phase == "forward" for a, _ in events)
    place = max(i for i, (a, _) in enumerate(events) if a.phase == "backward")
    assert live_at(events, place)["activations"] < 1024


def test_autocast_around_the_call_changes_nothing():
    alone = trace(plain_step, SMALL, [(8, 64)] * 3).peak()
    half = StepOptions(precision="bf16", capability=(8, 0))
    assert alone != trace(plain_step, SMALL, [(8, 64)] * 3, half).peak()
    tracing._trace.cache_clear()
    with torch.autocast("cpu", torch.bfloat16):
        assert trace(plain_step, SMALL, [(8, 64)] * 3).peak() == alone
    tracing._trace.cache_clear()
    torch.set_autocast_enabled("cuda", True)  # as on a machine with a card
    try:
        assert trace(plain_step, SMALL, [(8, 64)] * 3).peak() == alone
    finally:
        torch.set_autocast_enabled("cuda", False)


def test_autocast_for_cuda_is_refused():
    for_cuda = r'use torch\.autocast\(batch\["input_ids"\]\.device\.type'
    with pytest.raises(InvalidValue, match=for_cuda):
        trace(autocast_step("cuda"), SMALL, [(2, 8)])


class Recurrent(transformers.PreTrainedModel):
    """A classifier of one's own, with or without a recurrent layer."""

    config_class = transformers.BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.words = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        kinds = {name: getattr(torch.nn, name) for name in ("LSTM", "GRU", "RNN")}
        width = config.hidden_size
        layer = kinds.get(config.hidden_act, torch.nn.Linear)(width, width)
        self.layer, self.head = layer, torch.nn.Linear(width, 4)
        self.post_init()

    def forward(self, input_ids, **_):
        found = self.layer(self.words(input_ids))
        found = found[0] if isinstance(found, tuple) else found
        return transformers.modeling_outputs.SequenceClassifierOutput(
            logits=self.head(found[:, 0])
        )


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers_are_refused(kind):
    config = BertConfig(**SMALL_BERT.to_dict() | {"hidden_act": kind})
    options = StepOptions(auto_class=Recurrent)
    with pytest.raises(InvalidValue, match="LSTM, GRU or RNN cannot be traced"):
        trace(plain_step, config, [(2, 8)] * 3, options)


# classes of one's own


class OwnConfig(BertConfig):
    model_type = "own"


class OwnBert(transformers.BertForSequenceClassification):
    config_class = OwnConfig


def test_a_class_of_models_may_be_given():
    own = StepOptions(auto_class=Recurrent)
    assert trace(plain_step, SMALL_BERT, [(2, 8)] * 3, own).flops
    bert = StepOptions(auto_class=transformers.BertForSequenceClassification)
    usual = trace(plain_step, SMALL_BERT, [(2, 8)] * 3).peak()
    assert trace(plain_step, SMALL_BERT, [(2, 8)] * 3, bert).peak() == usual


def test_a_configuration_of_ones_own():
    config = OwnConfig(**{**SMALL_BERT.to_dict(), "model_type": "own"})
    usual = trace(plain_step, SMALL_BERT, [(2, 8)] * 3).peak()
    options = StepOptions(auto_class=OwnBert)
    assert trace(plain_step, config, [(2, 8)] * 3, options).peak() == usual
    with pytest.raises(InvalidValue, match="A step of own cannot .* Unrecogn") as error:
        trace(plain_step, config, [(2, 8)])
    assert len(str(error.value).splitlines()) == 1


def test_a_message_names_the_class_that_was_given():
    def step(model, batch, optimizer):
        model(batch["input_ids"], 1)

    with pytest.raises(InvalidValue, match=r"A step of Recurrent cannot .*TypeError"):
        trace(step, SMALL_BERT, [(2, 8)], StepOptions(auto_class=Recurrent))


def test_the_loss_of_deberta_needs_the_type_of_its_problem():
    def own_loss(model, batch, optimizer):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    facts = FAMILIES["deberta-v2"].to_dict()
    with pytest.raises(InvalidValue, match='"single_label_classification"'):
        trace(own_loss, transformers.DebertaV2Config(**facts), [(2, 8)])
    facts["problem_type"] = "single_label_classification"
    config = transformers.DebertaV2Config(**facts)
    assert trace(own_loss, config, [(2, 8)] * 3).flops


def looks_at_a_number(model, batch, optimizer):
    return model(**batch).loss.item()


def moves_its_batch(model, batch, optimizer):
    return model(batch["input_ids"].to("cuda"))


@pytest.mark.parametrize("step", [looks_at_a_number, moves_its_batch])
def test_a_step_that_cannot_be_traced_is_one_line(step):
    with pytest.raises(ValueError, match="A step of distilbert cannot be traced") as e:
        trace(step, SMALL, [(2, 8)])
    assert len(str(e.value).splitlines()) == 1 and e.value.__cause__ is not None
    assert ("Leave tensors where the model is" in str(e.value)) == (
        step is moves_its_batch
    )


# every family


FAMILIES = {
    "bert": transformers.BertConfig(num_hidden_layers=2),
    "roberta": transformers.RobertaConfig(num_hidden_layers=2),
    "xlm-roberta": transformers.XLMRobertaConfig(num_hidden_layers=2),
    "electra": transformers.ElectraConfig(num_hidden_layers=2),
    "albert": transformers.AlbertConfig(
        hidden_size=64, intermediate_size=128, num_attention_heads=4
    ),
    "deberta-v2": transformers.DebertaV2Config(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        relative_attention=True,
        position_buckets=256,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type="p2c|c2p",
        position_biased_input=False,
        type_vocab_size=0,
    ),
    "mpnet": transformers.MPNetConfig(num_hidden_layers=2),
    "modernbert": transformers.ModernBertConfig(num_hidden_layers=3),
    "xlnet": transformers.XLNetConfig(n_layer=2),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.slow
def test_every_family_is_traced(family, attention):
    found = trace(
        plain_step, FAMILIES[family], [(2, 64)] * 3, StepOptions(attention=attention)
    )
    assert found.flops > 0 and {a.phase for a, _ in found.events} == {
        "load",
        "forward",
        "backward",
        "optimizer",
    }


def test_modernbert_takes_more_than_512_tokens():
    short, long = (
        trace(plain_step, FAMILIES["modernbert"], [(2, n)] * 2).peak()[0]
        for n in (512, 1024)
    )
    assert long > 1.1 * short


@pytest.mark.parametrize(
    "config, message",
    [
        (
            transformers.GPT2Config(n_layer=2),
            "gpt2 cannot .* no padding token is defined",
        ),
        (transformers.CLIPConfig(), "A step of clip cannot .* Unrecognized config"),
        (transformers.T5Config(), "A step of t5 cannot be traced"),
        (
            transformers.BartConfig(encoder_layers=1, decoder_layers=1),
            "A step of bart cannot be traced",
        ),
        (transformers.XLMConfig(n_layers=1), "A step of xlm cannot be traced"),
    ],
)
def test_what_cannot_be_traced_is_one_line(config, message, capfd):
    with pytest.raises(ValueError, match=message) as caught:
        trace(plain_step, config, [(2, 64)] * 3)
    assert (
        len(str(caught.value).splitlines()) == 1
        and "Traceback" not in capfd.readouterr().err
    )


# against others' figures


@pytest.mark.parametrize("attention, expected", [("sdpa", 2021), ("eager", 3316)])
def test_peaks_of_an_independent_count(attention, expected):
    """DistilBERT, 8 x 512, fp32, no mask, foreach Adam, counted by another program."""
    found = trace(
        plain_step,
        DISTILBERT,
        [(8, 512)] * 2,
        StepOptions(attention=attention, implementation="foreach", mask=False),
    )
    assert peak_without_workspaces(found) / MIB == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(
    "config, published",
    [
        (BertConfig(), {8: 1277, 32: 1281, 128: 1307, 512: 1539}),
        (BertConfig(num_hidden_layers=6), {8: 1097, 32: 1101, 128: 1127, 512: 1359}),
        (BertConfig(hidden_size=384), {8: 1005, 32: 1027, 128: 1035, 512: 1255}),
    ],
    ids=["bert-base", "6 layers", "384 wide"],
)
@pytest.mark.slow
def test_twelve_published_measurements_to_the_mebibyte(config, published):
    """Inference on a Titan RTX (transformers' docs, benchmarks.rst).

    One constant, 803 MiB, is the context of that machine.
    """
    for length, measured in published.items():
        assert round(vram_accuracy.inference(config, length)) + 803 == measured, length


# what the events say


def test_categories_add_up():
    found = trace(plain_step, DISTILBERT, [(8, 64)] * 3, StepOptions())
    _, place = found.peak()
    weights = 66_956_548 * 4
    end = live_at(found.events, len(found.events))
    assert end["weights"] == pytest.approx(
        weights, abs=5000
    )  # and the buffer of positions
    assert end["optimizer state"] == pytest.approx(2 * weights, abs=5000)
    assert end["gradients"] == 0 and end["workspaces"] == 2 * 8_519_680
    assert set(live_at(found.events, place)) <= {*TRACED_PARTS, "batch"}
    before_step = next(
        i for i, (a, _) in enumerate(found.events) if a.phase == "optimizer"
    )
    assert live_at(found.events, before_step)["gradients"] == weights


def test_every_release_follows_its_allocation():
    alive = set()
    for allocation, made in trace(
        plain_step, SMALL, [(4, 16), (4, 24), (2, 16)], StepOptions()
    ).events:
        assert allocation.size > 0 and (allocation in alive) != made
        (alive.add if made else alive.remove)(allocation)


def test_op_module_phase_and_step_are_named():
    found = trace(plain_step, DISTILBERT, [(8, 512)] * 3, StepOptions())
    peak, place = found.peak()
    allocation = found.events[place][0]
    assert (allocation.op, allocation.phase, allocation.step) == ("sum", "backward", 3)
    assert allocation.module.startswith("distilbert.transformer.layer.5.ffn")
    attention = {
        a.module
        for a, _ in found.events
        if a.op == "_scaled_dot_product_efficient_attention"
    }
    assert attention == {
        f"distilbert.transformer.layer.{i}.attention" for i in range(6)
    }


# the switches


def peak(shape=(8, 256), step=plain_step, **switches):
    return trace(step, DISTILBERT, [shape] * 2, StepOptions(**switches)).peak()[0] / MIB


@pytest.mark.slow
def test_each_switch_does_what_it_should():
    plain = peak()
    assert peak(attention="eager") > plain + 300
    assert peak(mask=False) < plain
    assert peak(step=vram_accuracy.accumulated_step) < plain - 200
    assert peak(checkpointing=True) < plain - 300
    assert peak(precision="fp16") < plain - 100
    assert peak(shape=(8, 16), implementation="foreach") == pytest.approx(
        peak(shape=(8, 16)) + 255, abs=80
    )
    assert peak(capability=(9, 0)) == pytest.approx(plain + 2 * (32 - 8.125))


@pytest.mark.slow
def test_what_needed_more_before():
    """The benchmark repeats old figures: gradients stay, softmax keeps its input."""
    zeroed = peak(step=vram_accuracy.zeroed_gradients_step)
    assert zeroed == pytest.approx(peak() + 255, abs=30)
    options = StepOptions(attention="eager")
    step = vram_accuracy.own_loss_step
    now = trace(step, SMALL, [(8, 64)] * 2, options)
    with vram_accuracy.changed(*vram_accuracy.OF_2019):
        then = trace(step, SMALL, [(8, 64)] * 2, vram_accuracy.OptionsOf2019())

    def activations(found):
        return sum(
            a.size
            for a, made in found.events
            if made and a.step == 2 and a.category == "activations"
        )

    scores = 8 * 4 * 64 * 64 * 4
    mask = 8 * 64 * 64 * 4  # today's, spread over the queries
    assert activations(then) - activations(now) == pytest.approx(
        2 * scores - mask, abs=0.3 * scores
    )
    assert not any(a.category == "workspaces" for a, _ in then.events)


def test_shapes_may_change_from_step_to_step():
    found = trace(plain_step, SMALL, [(8, 16), (8, 96), (3, 8)], StepOptions())
    made = Counter(allocation.step for allocation, made in found.events if made)
    assert set(made) == {0, 1, 2, 3}
    assert found.events[found.peak()[1]][0].step == 2


def test_lengths_that_are_no_multiple_of_8_are_padded_for_the_kernel():
    found = trace(plain_step, SMALL, [(2, 33)], StepOptions())
    masks = [
        a.size
        for a, made in found.events
        if made and a.op in ("constant_pad_nd", "pad")
    ]
    assert masks == [2 * 33 * 40 * 4] * 2  # one a layer


# bad input


@pytest.mark.parametrize(
    "shapes, message",
    [
        ([], "list of batch shapes is empty"),
        ([(0, 16)], "A batch of 0 rows: rows must be at least 1"),
        ([(8, 16), (8, 129)], r"from 1 to 128 \(the model"),
        ([(8, 0)], "A batch of rows of 0 tokens"),
    ],
)
def test_shapes_out_of_range(shapes, message):
    with pytest.raises(ValueError, match=message):
        trace(plain_step, SMALL, shapes)


@pytest.mark.parametrize(
    "switch",
    [
        dict(attention="flash"),
        dict(optimizer="lion"),
        dict(precision="int8"),
        dict(implementation="slow"),
    ],
)
def test_a_switch_out_of_range_is_named(switch):
    with pytest.raises(ValueError, match=rf"StepOptions\.{next(iter(switch))} is"):
        StepOptions(**switch)


def test_the_callers_configuration_stays_as_it_is():
    before = SMALL.to_dict()
    options = StepOptions(attention="eager", checkpointing=True)
    assert trace(plain_step, SMALL, [(2, 8)], options) is trace(
        plain_step, SMALL, [(2, 8)], options
    )  # and is kept
    assert SMALL.to_dict() == before and SMALL._attn_implementation != "eager"


def test_a_traced_model_is_let_go(monkeypatch):
    models, make = [], tracing.new_model

    def new_model(*arguments):
        model = make(*arguments)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(tracing, "new_model", new_model)
    trace(plain_step, SMALL, [(3, 9)])
    gc.collect()
    assert len(models) == 1 and models[0]() is None


def patched_functions():
    functional = torch.nn.functional
    return (
        functional.dropout,
        functional.scaled_dot_product_attention,
        functional.softmax,
        torch.autograd.backward,
    )


@pytest.mark.parametrize("step", [plain_step, looks_at_a_number])
def test_functions_are_put_back(step):
    before = patched_functions()
    options = StepOptions(precision="fp16", attention="eager")
    with contextlib.suppress(ValueError):
        trace(step, SMALL, [(2, 8)], options)
    assert patched_functions() == before
