"""The accelerated trainer against LLaMA-Factory's own: the same batches give the same loss, rewards, KL and gradients.

The models are tiny and random; all else is real: LLaMA-Factory's parser, data processing, collator and trainer, which
`trainer` builds by LLaMA-Factory's own `run_kto`, stopped where the training would begin.
"""

import sys
import types
from importlib import metadata
from pathlib import Path

import pytest
import tiny

import kto_accelerator
from kto_accelerator import attention, averaging, enable, everyone, packed, reference
from kto_accelerator import trainer as accelerator
from kto_accelerator.lean import LeanLayer

ROWS = [(f"Question {i}: " + "why " * (i % 7) + "?", "Because. " + "So. " * (i * 5 % 9), i % 3 > 0) for i in range(16)]
SHAPE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             head_dim=8, max_position_embeddings=512, initializer_range=0.1, sliding_window=None)


class Built(Exception):
    """Carries a trainer out of `run_kto`."""


def tiny_model(kind: str, folder=None, **shape):
    """A random causal model of that type; with `folder`, saved there beside a tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    shape = {**SHAPE, "vocab_size": 259, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, **shape}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape), attn_implementation="sdpa")
    if folder:
        tiny.model(folder)
        model.save_pretrained(folder)
    return model


def shake(model, size: float = 0.03) -> None:
    """Random weights for the adapter, whose B is zero at first."""
    import torch

    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.copy_(torch.randn(weight.shape) * size)


def turn(model) -> None:
    """The adapter's opposite: what it made likelier becomes less likely."""
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.neg_()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("accelerator")
    tiny_model("llama", folder / "base")
    return folder


def trainer(folder, monkeypatch, fast: bool | str, base="base", **settings):
    """LLaMA-Factory's trainer, or the accelerated one, as `run_kto` builds it; its adapter shaken."""
    monkeypatch.setenv("USE_RAY", "0")
    from llamafactory.train import tuner
    from llamafactory.train.kto import workflow

    stock = workflow.CustomKTOTrainer

    def train(self, **kwargs):
        raise Built(self)

    loss = fast if isinstance(fast, str) else "kto"
    chosen = accelerator.accelerated(stock, loss) if fast else stock
    monkeypatch.setattr(workflow, "CustomKTOTrainer", type("Captured", (chosen,), {"train": train}))
    arguments = {**tiny.config(folder / base, folder / "datasets"), "do_train": True,
                 "dataset": tiny.dataset(folder / "datasets", ROWS), "lora_target": "all",
                 "output_dir": str(folder / "out"), "overwrite_output_dir": True, "report_to": "none", "per_device_train_batch_size": 6, "disable_gradient_checkpointing": True,
                 "overwrite_cache": True, "cache_dir": str(folder), "cutoff_len": 400, **settings}
    with pytest.raises(Built) as caught:
        tuner._training_function({"args": arguments, "callbacks": []})
    monkeypatch.setattr(workflow, "CustomKTOTrainer", stock)
    built = caught.value.args[0]
    shake(built.model)
    return built


def outcome(built, batch: dict) -> tuple[float, dict, dict]:
    """Loss, metrics and gradients of one batch."""
    built.model.zero_grad()
    with built.compute_loss_context_manager():
        loss, metrics = built.get_batch_loss_metrics(built.model, built._prepare_inputs(batch))
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in built.model.named_parameters() if weight.requires_grad}
    return float(loss), {key: 0.0 if "logits" in key else float(value) for key, value in metrics.items()}, gradients


def assert_equal(ours, theirs, tolerance: float, gradients: float) -> None:
    """Loss and every metric, and every gradient relative to its size."""
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance)
    kl, other_kl = ours[1].pop("kl"), theirs[1]["kl"]  # differences of log-probabilities near -100, each exact to 8e-6 in float32
    assert kl == pytest.approx(other_kl, rel=tolerance, abs=3 * tolerance)
    assert {"kl": other_kl} | ours[1] == pytest.approx(theirs[1], rel=tolerance, abs=tolerance)
    assert ours[2].keys() == theirs[2].keys() and ours[2]
    for name, gradient in theirs[2].items():
        assert (ours[2][name] - gradient).norm() <= gradients * gradient.norm() + 1e-9, name


@pytest.mark.slow
@pytest.mark.parametrize("settings", [
    {"pref_ftx": 0.5, "kto_chosen_weight": 1.3, "lora_dropout": 0.1},
    {"disable_gradient_checkpointing": False, "lora_target": "q_proj,down_proj"},
    {"use_dora": True},  # no layer of these can be limited to some rows: the reference has a pass of its own
], ids=str)
def test_loss_rewards_kl_and_gradients_are_the_stock_trainers(folder, monkeypatch, settings):
    stock, fast = (trainer(folder, monkeypatch, fast, **settings) for fast in (False, True))
    batches, kls = list(stock.get_train_dataloader()), []
    assert all((batch["attention_mask"] == 0).any() for batch in batches)  # there is padding to be left out
    for _ in range(2):  # the second time the policy is another one, and the reference is remembered
        for batch in batches:
            theirs = outcome(stock, batch)
            assert_equal(outcome(fast, batch), theirs, tolerance=1e-5, gradients=3e-5)
            kls.append(theirs[1]["kl"])
        turn(stock.model)
        turn(fast.model)
    assert max(kls) > 0 or "use_dora" in settings  # not only the clamp was compared
    assert len(fast._places) == 2 * len(ROWS)
    assert fast._one_pass == ("use_dora" not in settings)


def apo_zero(stock, batch: dict) -> tuple:
    """(loss, rewards of accepted, of rejected rows, gradients) by TRL's loss_type apo_zero_unpaired, as its documentation has it
    (D'Oosterlinck et al. 2024, eq. 7, unpaired): 1 - σ(β r) for accepted rows and σ(β r) for rejected ones, r = log π/π_ref.
    """
    import torch
    from llamafactory.train.trainer_utils import get_batch_logps

    def logps():
        logits = stock.model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits.float()
        return get_batch_logps(logits, batch["labels"])[0]

    stock.model.zero_grad()
    with torch.no_grad(), stock.model.disable_adapter():
        reference = logps()
    ratio, settings = logps() - reference, stock.finetuning_args
    value = torch.sigmoid(settings.pref_beta * ratio)
    losses = torch.where(batch["kto_tags"], settings.kto_chosen_weight * (1 - value), settings.kto_rejected_weight * value)
    losses.mean().backward()
    gradients = {name: weight.grad.clone() for name, weight in stock.model.named_parameters() if weight.requires_grad}
    rewards = settings.pref_beta * ratio.detach()
    return float(losses.mean()), float(rewards[batch["kto_tags"]].sum()), float(rewards[~batch["kto_tags"]].sum()), gradients


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"kto_chosen_weight": 1.3}, {"per_device_train_batch_size": 1}, {"use_dora": True}], ids=str)
def test_the_loss_without_kl_is_trls_on_the_same_batch_and_makes_no_mismatched_pass(folder, monkeypatch, settings):
    stock, fast = (trainer(folder, monkeypatch, fast, **settings) for fast in (False, True))
    apo = trainer(folder, monkeypatch, "apo_zero_unpaired", **settings)
    passed, differs = [], 0.0
    monkeypatch.setattr(packed, "logps", lambda model, rows, *more, logps=packed.logps, **named: (
        passed.append(len(rows.counts)), logps(model, rows, *more, **named))[1])
    for _ in range(2):  # the second time every row's reference is known
        passed.clear()
        for batch in list(stock.get_train_dataloader())[:4]:
            loss, accepted, rejected, gradients = apo_zero(stock, batch)
            ours = outcome(apo, batch)
            assert ours[0] == pytest.approx(loss, rel=1e-5) and ours[1]["kl"] == 0
            assert ours[1].get("rewards/chosen_sum", 0.0) == pytest.approx(accepted, rel=1e-4, abs=1e-5)
            assert ours[1].get("rewards/rejected_sum", 0.0) == pytest.approx(rejected, rel=1e-4, abs=1e-5)
            for name, gradient in gradients.items():
                assert (ours[2][name] - gradient).norm() <= 3e-5 * gradient.norm() + 1e-9, name
            before = len(passed)
            differs = max(differs, abs(outcome(fast, batch)[0] - loss))
            del passed[before:]
        assert len(apo._places) <= len(ROWS)
        for built in (stock, fast, apo):
            turn(built.model)
    assert sum(passed) == sum(len(batch["kto_tags"]) for batch in list(stock.get_train_dataloader())[:4])  # the policy's own rows
    assert differs > 1e-5 or "use_dora" in settings  # KL was not 0 all the time


@pytest.fixture
def compared(monkeypatch):
    """As if the installed LLaMA-Factory were one that was compared, on every stack."""
    monkeypatch.setattr(enable, "VERSIONS", (metadata.version("llamafactory"),))


def test_a_loss_that_there_is_not_is_refused(compared):
    with pytest.raises(RuntimeError, match="no loss 'bco'"):
        kto_accelerator.install("bco")


def adapted(kind: str, **lora):
    """A random model of that type under a shaken adapter."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **lora)
    model = get_peft_model(tiny_model(kind), config)
    shake(model)
    return model.train()


def random_rows(lengths=((3, 9), (20, 1), (7, 30), (1, 4))) -> list[tuple]:
    """Rows of random tokens: prompt and reply of those lengths."""
    import torch

    torch.manual_seed(2)
    rows = [(torch.randint(3, 259, (prompt + reply,)), prompt) for prompt, reply in lengths]
    return [(ids, torch.cat([ids.new_full((prompt,), -100), ids[prompt:]])) for ids, prompt in rows]


def batch_of(rows, kl_rows) -> dict:
    """A padded batch of rows and mismatched rows, as LLaMA-Factory's collator makes it."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    batch = {"kto_tags": torch.arange(len(rows)) % 2 == 0}
    for prefix, some in (("", rows), ("kl_", kl_rows)):
        batch[f"{prefix}input_ids"] = pad_sequence([ids for ids, _ in some], batch_first=True, padding_value=2)
        batch[f"{prefix}labels"] = pad_sequence([labels for _, labels in some], batch_first=True, padding_value=-100)
        batch[f"{prefix}attention_mask"] = pad_sequence([torch.ones(len(ids)) for ids, _ in some], batch_first=True)
    return batch


def without_adapter(monkeypatch) -> list[int]:
    """A list that grows, with every pass, by how many of its tokens the adapter does not act on."""
    asked = []

    def logps(model, rows, adapted=None, memory=None, again=False, logps=packed.logps):
        asked.append(0 if adapted is None else rows.input_ids.shape[1] - adapted)
        return logps(model, rows, adapted, memory, again)

    monkeypatch.setattr(packed, "logps", logps)
    return asked


def padded_logps(model, rows):
    """What LLaMA-Factory computes of them."""
    import torch
    from llamafactory.train.trainer_utils import get_batch_logps
    from torch.nn.utils.rnn import pad_sequence

    ids = pad_sequence([row for row, _ in rows], batch_first=True, padding_value=2)
    labels = pad_sequence([row for _, row in rows], batch_first=True, padding_value=-100)
    mask = pad_sequence([torch.ones(len(row)) for row, _ in rows], batch_first=True)
    return get_batch_logps(model(ids, attention_mask=mask, use_cache=False).logits.float(), labels)[0]


@pytest.mark.parametrize("kind", enable.MODELS)
def test_packed_log_probabilities_and_their_gradients_are_those_of_the_padded_batch(kind, monkeypatch):
    import torch

    model, rows = adapted(kind), random_rows()
    expected = padded_logps(model, rows)
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    gradients = torch.autograd.grad((expected * torch.arange(1, 5)).sum(), list(weights.values()))
    with torch.no_grad(), model.disable_adapter():
        reference = padded_logps(model, rows)
    assert packed.prepare(model)
    monkeypatch.setattr(packed, "LOGITS_AT_ONCE", 259 * 10)  # several chunks
    laid = packed.pack(rows)
    found = packed.logps(model, laid)
    assert torch.allclose(found, expected, rtol=1e-5)
    ours = torch.autograd.grad((found * torch.arange(1, 5)).sum(), list(weights.values()))
    for name, mine, theirs in zip(weights, ours, gradients, strict=True):
        assert (mine - theirs).norm() <= 3e-5 * theirs.norm(), name
    with torch.no_grad():
        mixed = packed.logps(model, laid, adapted=sum(len(ids) for ids, _ in rows[:2]))
        assert torch.allclose(packed.logps(model, laid), expected, rtol=1e-5)  # the limit is gone again
    assert torch.allclose(mixed, torch.cat([expected[:2], reference[2:]]), rtol=1e-5)
    assert not torch.allclose(expected, reference, rtol=1e-3)


@pytest.mark.parametrize("kind", enable.MODELS)
def test_a_prompt_is_computed_once_and_nothing_else_is_changed_by_it(kind):
    import torch

    model, rows = adapted(kind), random_rows()
    replies = [ids[labels != -100] for ids, labels in rows]
    kl_rows = []
    for (ids, labels), reply in zip(rows, replies[-1:] + replies[:-1], strict=True):  # the reply of the row before
        prompt = ids[labels == -100]
        kl_rows.append((torch.cat([prompt, reply]), torch.cat([torch.full_like(prompt, -100), reply])))
    expected = padded_logps(model, rows), padded_logps(model, kl_rows)
    with torch.no_grad(), model.disable_adapter():
        reference = padded_logps(model, rows + kl_rows)
    assert packed.prepare(model)
    given, memory = accelerator.Rows.of(batch_of(rows, kl_rows)), attention.Memory()
    assert given.shared == [2, 19, 6, 0]  # all of a prompt but its last token, which predicts
    assert given.mismatched.input_ids.shape[1] == sum(len(ids) for ids, _ in kl_rows) - 27
    policy = packed.logps(model, given.policy, memory=memory)
    assert policy.requires_grad and torch.allclose(policy, expected[0], rtol=1e-5)
    with torch.no_grad():
        assert torch.allclose(packed.logps(model, given.mismatched, memory=memory), expected[1], rtol=1e-5)
        every = accelerator.logps_with_new(model, given, list(range(8)), memory)
        some = accelerator.logps_with_new(model, given, [6, 1, 5, 3], memory)  # 5 beside 1; 6 without the row that it shares with
    assert torch.allclose(every, torch.cat([expected[1], reference]), rtol=1e-5)
    assert torch.allclose(some, torch.cat([expected[1], reference[[6, 1, 5, 3]]]), rtol=1e-5)


def test_in_bf16_the_second_pass_of_a_step_leaves_what_the_first_saved_for_its_backward():
    import torch

    model = adapted("llama")
    for name, weight in model.named_parameters():
        weight.data = weight.data if "lora_" in name else weight.data.bfloat16()
    assert packed.prepare(model)
    laid, weights = packed.pack(random_rows()), [weight for weight in model.parameters() if weight.requires_grad]
    found = []
    for passes in (1, 2):
        with torch.autocast("cpu", torch.bfloat16):
            policy = packed.logps(model, laid)
            if passes == 2:
                with torch.no_grad():
                    packed.logps(model, laid, again=True)
        found.append(torch.autograd.grad(policy.sum(), weights))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_parameters_and_mode_are_remembered_and_still_switched():
    model = adapted("llama")
    accelerator.remember(model)
    assert [id(one) for one in model.parameters()] == [id(one) for _, one in model.named_parameters()]
    assert not model.eval().training and not any(module.training for module in model.modules())
    assert model.train() is model and all(module.training for module in model.modules())


def test_an_ordinary_forward_is_untouched():
    import torch

    model, rows = adapted("llama"), random_rows()
    before = padded_logps(model, rows)
    packed.prepare(model)
    assert torch.allclose(padded_logps(model, rows), before, rtol=1e-6)


def test_a_model_whose_attention_is_not_known_is_refused():
    model = adapted("llama")
    model.get_base_model().config._attn_implementation = "eager"
    with pytest.raises(ValueError, match="eager"):
        packed.prepare(model)


def test_a_row_longer_than_the_attention_slides_over_is_refused():
    import torch

    model, rows = adapted("mistral"), random_rows()
    packed.prepare(model)
    model.get_base_model().config.sliding_window = 16
    with torch.no_grad(), pytest.raises(ValueError, match="slides over 16"):
        packed.logps(model, packed.pack(rows))


@pytest.mark.parametrize(("lora", "limited"), [({}, True), ({"use_dora": True}, False), ({"lora_dropout": 0.1}, False),
                                               ({"modules_to_save": ["lm_head"]}, False)])
def test_only_plain_adapters_can_be_limited_to_some_rows(lora, limited):
    assert packed.prepare(adapted("llama", **lora)) == limited


def test_reference_log_probabilities_are_computed_once_a_row_and_told_to_other_workers_when_an_epoch_begins(monkeypatch):
    import accelerate.utils
    import torch

    model, rows = adapted("llama"), random_rows()
    packed.prepare(model)
    made = types.SimpleNamespace(_one_pass=True, _places={}, _values=None, _store=None, _untold=[], _epoch=None, model=model.train(),
                                 accelerator=types.SimpleNamespace(num_processes=2), state=types.SimpleNamespace(epoch=0.5),
                                 args=types.SimpleNamespace(device="cpu"))
    for name in ("_learn", "_add", "_tell_workers"):
        setattr(made, name, types.MethodType(getattr(accelerator.Accelerated, name), made))
    told = []
    monkeypatch.setattr(accelerate.utils, "gather_object", lambda mine: told.extend(mine) or [{b"from another worker": 1.0}, *mine])
    asked = without_adapter(monkeypatch)
    given = accelerator.Rows.of(batch_of(rows[:2], rows[2:]))
    made._tell_workers()  # what was read from disk is known to all: nothing to tell yet
    with torch.no_grad():
        first, second = (accelerator.Accelerated._without_gradient(made, model, given, None) for _ in range(2))
    assert asked == [sum(len(ids) for ids, _ in rows), 0] and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    made._tell_workers()  # the same epoch
    assert told == [{}]
    made.state.epoch = 1.0
    made.model.eval()
    made._tell_workers()  # in an evaluation rows come to the same workers every time
    made.model.train()
    made._tell_workers()
    assert told == [{}, {key: pytest.approx(float(made._values[made._places[key]])) for key in given.keys}]
    assert made._values[made._places[b"from another worker"]] == 1.0 and len(made._values) == 5
    made.state.epoch = 2.0
    made._tell_workers()
    assert told[2:] == [{}] and len(made._values) == 5  # an epoch later every row is known


@pytest.mark.parametrize("half", [False, True])
def test_a_layer_in_four_bits_computes_what_bitsandbytes_and_peft_do(half):
    """Runs where bitsandbytes is installed, on a CPU too."""
    import torch

    bitsandbytes = pytest.importorskip("bitsandbytes")
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = torch.nn.Sequential(bitsandbytes.nn.Linear4bit(64, 96, bias=True, compute_dtype=torch.float32, quant_type="nf4"))
    base.is_loaded_in_4bit = True
    model = get_peft_model(base.to("cpu"), LoraConfig(r=4, target_modules=["0"]))
    (layer,) = (module for module in model.modules() if hasattr(module, "lora_A"))
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    states = torch.randn(10, 64)

    def result():
        model.zero_grad()
        given = states.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = model(given)
        found.float().square().sum().backward()
        return [found, given.grad, *(weight.grad for weight in model.parameters() if weight.requires_grad)]

    stock = result()
    assert LeanLayer.fits(layer)
    lean = LeanLayer(layer)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        LeanLayer.refresh([lean])
    for ours, theirs in zip(result(), stock, strict=True):
        assert (ours - theirs).abs().max() <= (1e-2 if half else 1e-6) * theirs.abs().max()


def test_trainings_it_was_not_proved_for_are_refused():
    full, noise = types.SimpleNamespace(finetuning_type="full"), types.SimpleNamespace(neftune_noise_alpha=5)
    trainer = types.SimpleNamespace(finetuning_args=full, ref_model=None, is_deepspeed_enabled=True,
                                    is_fsdp_enabled=False, args=noise)
    with pytest.raises(RuntimeError, match="finetuning_type full, DeepSpeed or FSDP, neftune"):
        accelerator.refuse_unproved(trainer)


@pytest.mark.slow
def test_another_llamafactory_is_refused_and_ours_is_replaced_by_name(monkeypatch):
    from llamafactory.extras import env
    from llamafactory.train.kto import workflow

    monkeypatch.setattr(workflow, "CustomKTOTrainer", workflow.CustomKTOTrainer)
    kto_accelerator.install()
    kto_accelerator.install()  # the second time it is there already
    assert workflow.CustomKTOTrainer.__mro__[1] is accelerator.Accelerated
    monkeypatch.setattr(env, "VERSION", "0.9.9")
    with pytest.raises(RuntimeError, match="0.9.9"):
        kto_accelerator.install()


@pytest.mark.parametrize(("text", "says"), [
    (None, "No such file"), ("a: [1", "cannot be read"), ("", "no key: value lines"), ("- 1", "no key: value lines"), (b"\xff", "cannot be read"),
    ("stage: sft", "llamafactory-cli train config.yaml")])
def test_the_command_refuses_a_config_before_it_imports_anything_heavy(text, says, monkeypatch, tmp_path):
    from kto_accelerator import __main__ as command

    monkeypatch.setattr(sys, "argv", ["kto_accelerator", "train", "config.yaml"])
    monkeypatch.setitem(sys.modules, "torch", None)  # an import fails
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SystemExit, match=says) as left:
        command.main()
    assert all(word in str(left.value) for word in ("error: ", "expected: ", "fix: "))


def test_the_command_says_what_is_not_proved_and_leaves_keys_of_the_command_line_to_llamafactory(monkeypatch, tmp_path, capsys):
    from kto_accelerator import __main__ as command

    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("stage: kto\nfinetuning_type: full")
    monkeypatch.setattr(sys, "argv", ["kto_accelerator", "train", "config.yaml"])
    command.refuse("config.yaml")
    assert "not proved for this config: finetuning_type is full, not lora" in capsys.readouterr().err
    Path("config.yaml").write_text("stage: sft")
    monkeypatch.setattr(sys, "argv", ["kto_accelerator", "train", "config.yaml", "stage=kto"])
    command.refuse("config.yaml")


@pytest.mark.slow
def test_the_command_trains_with_it_by_a_function_that_ray_sends_by_name(monkeypatch, tmp_path):
    from llamafactory.train import tuner
    from llamafactory.train.kto import workflow
    from ray import cloudpickle

    from kto_accelerator import __main__ as command

    ran = []
    monkeypatch.setattr(workflow, "CustomKTOTrainer", workflow.CustomKTOTrainer)
    monkeypatch.setattr(tuner, "_training_function", ran.append)
    monkeypatch.setattr(tuner, "run_exp", lambda: tuner._training_function({"args": sys.argv[1:]}))
    monkeypatch.setattr(tuner, "_stock_training_function", None, raising=False)
    monkeypatch.setattr(sys, "argv", ["kto_accelerator", "train", "config.yaml"])
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("stage: kto")
    for name in ("RANK", "USE_RAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(SystemExit, match="torchrun --nproc-per-node 2 -m kto_accelerator train config.yaml"):
        command.main()
    monkeypatch.setenv("RANK", "0")
    command.main()
    assert ran == [{"args": ["config.yaml"]}]
    tuner._training_function(config := {"args": {"stage": "kto", "loss": "kto"}})
    assert config == {"args": {"stage": "kto"}}
    assert issubclass(workflow.CustomKTOTrainer, accelerator.Accelerated)
    assert len(cloudpickle.dumps(tuner._training_function)) < 100  # its name, not its code


def test_what_is_supported_is_said_with_the_reason(tmp_path, compared):
    good = {"stage": "kto", "finetuning_type": "lora", "model_name_or_path": "meta-llama/Meta-Llama-3-8B-Instruct"}
    assert kto_accelerator.supports(good) == (True, "")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "config.json").write_text('{"model_type": "mistral", "sliding_window": 1024}')
    slides = {"model_name_or_path": str(tmp_path / "slides")}
    assert kto_accelerator.supports(good | slides | {"cutoff_len": 1024}) == (True, "")
    assert kto_accelerator.supports(good, {"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": False})[0]
    for change, why in [({"stage": "dpo"}, "dpo"), (slides, "1024"), ({"shift_attn": True}, "shift_attn"), ({"finetuning_type": "full"}, "full"), ({"deepspeed": "ds.json"}, "DeepSpeed"),
                        ({"ref_model": "x"}, "ref_model"), ({"model_name_or_path": str(tmp_path)}, "gpt2")]:
        supported, reason = kto_accelerator.supports(good | change)
        assert not supported and why in reason
    assert "gpt2" in kto_accelerator.supports(good, {"model_type": "gpt2"})[1]


def test_another_llamafactory_is_not_supported(monkeypatch):
    monkeypatch.setattr(enable.metadata, "version", lambda name: "0.9.5")
    assert kto_accelerator.supports({"stage": "kto"}) == (False, "LLaMA-Factory is 0.9.5; compared were 0.9.3, 0.9.4")


def test_the_shape_is_read_from_a_folder_and_from_the_hub_only_when_asked(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *words, **more: asked.append(words) or tmp_path / "config.json")
    assert kto_accelerator.shape_of({"model_name_or_path": str(tmp_path)}, hub=True) == {"model_type": "llama"} and not asked
    assert kto_accelerator.shape_of({"model_name_or_path": "org/name"}) == {} and not asked
    assert kto_accelerator.shape_of({"model_name_or_path": "org/name"}, hub=True) == {"model_type": "llama"} and asked
    (tmp_path / "config.json").write_text("[")
    assert kto_accelerator.shape_of({"model_name_or_path": str(tmp_path)}, hub=True) == {}


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "says"), [({}, "trainer kto_accelerator"), ({"fp8": True}, "trainer kto_accelerator"),
                                                ({"flash_attn": "disabled"}, "trainer of LLaMA-Factory, for flash_attn is off")])
def test_a_launched_training_takes_it_where_it_is_proved_and_says_which_trainer_trains(tmp_path, settings, says):
    import os
    import subprocess

    import yaml

    from helpers.profiles import ROOT

    local = yaml.safe_load((ROOT / "train-configs" / "kto_lora_local.yaml").read_text())
    config = local | tiny.config(tiny.model(tmp_path / "base"), tmp_path / "data") | {
        "dataset": tiny.dataset(tmp_path / "data", ROWS), "output_dir": str(tmp_path / "output"), "ray_run_name": "run",
        "ray_storage_path": str(tmp_path / "ray"), "ray_num_workers": 1, "max_steps": 2, **settings}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run([sys.executable, "-m", "helpers.trainer", str(tmp_path / "config.yaml"), "--accelerated=auto"], timeout=900,
                          text=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"})
    assert done.returncode == 0 and f"[kto] {says}" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.slow
def test_two_workers_train_the_adapter_that_one_trains_with_batches_twice_as_large(tmp_path):
    import os
    import subprocess

    import yaml
    from safetensors.torch import load_file

    from helpers.profiles import ROOT

    adapters = []
    for workers in (1, 2):
        output = tmp_path / f"output-{workers}"
        config = tiny.config(tiny.model(tmp_path / "base"), tmp_path / "data") | {
            "do_train": True, "dataset": tiny.dataset(tmp_path / "data", ROWS), "lora_target": "all", "output_dir": str(output),
            "per_device_train_batch_size": 4 // workers, "gradient_accumulation_steps": 2, "max_steps": 5, "learning_rate": 0.01,
            "overwrite_cache": True, "report_to": "none"}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"] if workers > 1 else []
        done = subprocess.run([sys.executable, *torchrun, "-m", "kto_accelerator", "train", str(tmp_path / "config.yaml")], timeout=600,
                              text=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"})
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        adapters.append(load_file(output / "adapter_model.safetensors"))
    one, two = adapters
    assert one.keys() == two.keys() and max(float(weight.norm()) for name, weight in one.items() if "lora_B" in name) > 0.01
    for name, weight in one.items():
        assert (two[name] - weight).norm() <= 1e-4 * weight.norm(), name


@pytest.mark.slow
def test_a_later_run_takes_the_reference_from_disk_and_has_the_same_losses_to_the_bit(folder, monkeypatch, tmp_path):
    monkeypatch.setenv("KTO_REFERENCE_DIR", str(tmp_path))
    first = trainer(folder, monkeypatch, True)
    batches = list(first.get_train_dataloader())
    for batch in batches:
        outcome(first, batch)  # every row is known now
    losses = [outcome(first, batch)[0] for batch in batches]
    first.save_reference()
    second, asked = trainer(folder, monkeypatch, True), without_adapter(monkeypatch)
    assert [outcome(second, batch)[0] for batch in batches] == losses
    assert asked and not any(asked)  # no row went through the reference model


def test_reference_values_of_another_model_precision_or_template_are_not_taken(tmp_path):
    import torch

    model, args = adapted("llama"), types.SimpleNamespace(bf16=False, fp16=False, device=torch.device("cpu"))
    first = reference.identity_of(model, args, "llama3")
    assert reference.identity_of(adapted("llama"), args, "llama3") == first
    shake(model, 0.5)  # the adapter is no part of the reference
    assert reference.identity_of(model, args, "llama3") == first
    others = [reference.identity_of(model, args, "qwen")]
    args.bf16 = True
    others.append(reference.identity_of(model, args, "llama3"))
    args.bf16 = False
    with torch.no_grad():  # one bit of one weight
        next(weight for name, weight in model.named_parameters() if "base_layer" in name)[3, 5] += 1e-6
    others.append(reference.identity_of(model, args, "llama3"))
    folders = {reference.Store(tmp_path, one).folder for one in (first, *others)}
    assert len(folders) == 4


def test_two_writers_add_up_and_a_damaged_file_is_passed_over(tmp_path):
    import numpy as np

    one, two = (reference.Store(tmp_path, {"model": 1}) for _ in range(2))
    keys = [bytes([i]) + bytes(15) for i in range(4)]
    one.write(keys[:2], np.array([1.5, 2.5], np.float32))
    two.write(keys[1:], np.array([2.5, 3.5, 4.5], np.float32))
    known, values = one.read()
    assert dict(zip(known, values.tolist(), strict=True)) == dict(zip(keys, (1.5, 2.5, 3.5, 4.5), strict=True))
    for path in one.folder.glob("*.bin"):
        path.write_bytes(path.read_bytes()[:-1])
    assert one.read()[0] == []


def log_in_a_worker(rank: int, folder: str, fast: bool) -> None:
    """One of two workers: stores two batches and logs a line, evaluates and logs another; worker 0 writes them down.

    Then their gradients are averaged.
    """
    import collections
    import json
    import os
    from pathlib import Path

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": Path(folder, "port").read_text(), "GLOO_SOCKET_IFNAME": "lo"}
    import torch
    from accelerate import Accelerator
    from llamafactory.train.kto.trainer import CustomKTOTrainer
    from transformers import Trainer

    stock = type("CustomKTOTrainer", (everyone.EveryWorker, CustomKTOTrainer), {})
    made = object.__new__(accelerator.accelerated(CustomKTOTrainer) if fast else stock)
    made.accelerator = Accelerator(cpu=True)
    made._stored_metrics = collections.defaultdict(lambda: collections.defaultdict(list))
    made.calculate_KL, made.loss_type = True, "kto"  # what TRL 0.24 asks of it
    batches = [[("chosen", 1.0)], [("chosen", 2.0)]] if rank == 0 else [[("chosen", 6.0), ("rejected", -5.0)], [("rejected", -7.0)]]
    for batch in batches:
        found = {"kl": torch.tensor(0.25)}
        for label, reward in batch:
            found |= accelerator.sums(label, torch.tensor([reward]), torch.tensor([reward * 10]))
        made.store_metrics(found, train_eval="train")
    lines = []
    Trainer.log = lambda self, logs, *args, **kwargs: lines.append(logs)
    made.log({"loss": 0.5})
    made.model, made.beta, made.desirable_weight, made.undesirable_weight = types.SimpleNamespace(training=False), 1.0, 1.0, 1.0
    nothing = torch.empty(0)
    for accepted, rejected in [([3.0, 1.0], [2.0]), ([], [0.5])] if rank == 0 else [([1.5], []), ([2.0], [])]:
        made.kto_loss(torch.tensor(accepted), torch.tensor(rejected), torch.zeros(1), torch.zeros(len(accepted)),
                      torch.zeros(len(rejected)), torch.zeros(1))
    made.log({"eval_held_loss": 0.5})
    made.kto_loss(torch.ones(1), nothing, torch.zeros(1), torch.zeros(1), nothing, torch.zeros(1))
    made.log({"eval_loss": 0.5})  # no rejected row anywhere: no area
    made.log({"train_runtime": 1.0, "train_loss": 0.5})  # the last line: nothing is stored
    whole, half = (torch.nn.Parameter(torch.ones(2, 3, dtype=kind)) for kind in (torch.float32, torch.bfloat16))
    whole.grad = torch.full_like(whole, 1.0 + 2 * rank)
    if rank == 1:  # worker 0 has none
        half.grad = torch.full_like(half, 5.0)
    averaging.average([whole, half])
    assert (whole.grad == 2.0).all() and (half.grad == 2.5).all() and half.grad.dtype == torch.bfloat16
    if rank == 0:
        Path(folder, "lines.json").write_text(json.dumps(lines))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("fast", [True, False])
def test_rewards_of_a_log_line_are_of_all_workers_kl_is_counted_once_and_gradients_are_averaged(tmp_path, fast):
    import json
    import socket

    import torch.multiprocessing

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(free.getsockname()[1]))
    torch.multiprocessing.spawn(log_in_a_worker, (str(tmp_path), fast), nprocs=2)
    line, held, one_label, last = json.loads((tmp_path / "lines.json").read_text())
    assert line["rewards/chosen"] == 3.0 and line["rewards/rejected"] == -6.0 and line["rewards/margins"] == 9.0
    assert line["logps/chosen"] == 30.0 and line["kl"] == 0.5
    assert held["eval_rewards/auc"] == (2 + 1 + 1 + 1.5) / 8 and "eval_rewards/auc" not in one_label  # 3, 1, 1.5, 2 against 2, 0.5
    assert last == {"train_runtime": 1.0, "train_loss": 0.5}


def test_the_area_is_the_one_of_the_held_out_figures():
    import pandas

    from helpers import evaluate

    rewards, labels = [0.3, 0.1, 0.3, -0.2, 0.5, 0.1], [True, False, False, True, True, True]
    sides = [[reward for reward, label in zip(rewards, labels, strict=True) if label == wanted] for wanted in (True, False)]
    table = pandas.DataFrame({"reward": rewards, "label": labels, "prompt": range(6)})
    assert everyone.area(*sides) == pytest.approx(evaluate.accuracy(table)["auc"])
    assert everyone.area([1.0, 1.0], [1.0]) == 0.5


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.mark.slow
@pytest.mark.skipif(not on_gpu(), reason="needs a GPU: bf16, flash attention and liger's kernels")
@pytest.mark.parametrize("liger", [False, True])
def test_on_a_gpu_bf16_rewards_kl_and_gradients_are_as_near_to_float32_as_the_stock_trainers(folder, monkeypatch, liger):
    import copy

    import torch

    if not (folder / "wide").exists():
        wide = dict(hidden_size=512, intermediate_size=1024, num_attention_heads=8, head_dim=64, torch_dtype="bfloat16")
        tiny_model("llama", folder / "wide", **wide)
    settings = dict(base="wide", bf16=True, enable_liger_kernel=liger, per_device_train_batch_size=4)
    stock, fast = (trainer(folder, monkeypatch, fast, **settings) for fast in (False, True))
    exact = copy.deepcopy(stock.model).float()
    errors = {"stock": [], "accelerated": []}
    for batch in stock.get_train_dataloader():
        with torch.autocast("cuda", torch.bfloat16):
            theirs, ours = outcome(stock, batch), outcome(fast, batch)
        stock.model, kept = exact, stock.model
        truth = outcome(stock, batch)
        stock.model = kept
        for name, found in (("stock", theirs), ("accelerated", ours)):
            metrics = [abs(found[1][key] - truth[1][key]) for key in sorted(truth[1])]
            gradients = [float((found[2][key] - part).norm() / part.norm()) for key, part in truth[2].items()]
            errors[name].append([abs(found[0] - truth[0]), *metrics, max(gradients), sum(gradients) / len(gradients)])
    theirs, ours = (torch.tensor(errors[name]).pow(2).mean(0).sqrt() for name in ("stock", "accelerated"))
    for what, one, other in zip(["loss", *sorted(truth[1]), "gradients, worst", "gradients"], theirs, ours, strict=True):
        print(f"GPU liger={liger} {what}: error of the stock trainer {one:.5f}, of the accelerated {other:.5f}")
    assert (ours <= 2 * theirs + 1e-3).all()
