"""8-bit products, padded passes, and what refuses them. The same numbers are multiplied on a CPU in float32; graphs need a GPU."""

import pytest
from test_accelerator import adapted, batch_of, random_rows, shake

from kto_accelerator import attention, enable, fp8, packed
from kto_accelerator import trainer as accelerator


def test_a_product_and_its_gradient_are_near_those_of_the_weight_itself():
    import torch

    torch.manual_seed(0)
    weight, x, grad, bias = torch.randn(64, 48) * 3, torch.randn(10, 48), torch.randn(10, 64), torch.randn(64)
    x[3], grad[4] = 0, 0
    frozen = fp8.Frozen(weight)
    for found, exact in ((frozen.times(x), x @ weight.t()), (frozen.back(grad), grad @ weight),
                         (frozen.times(x, bias), x @ weight.t() + bias)):
        assert (found - exact).norm() < 0.045 * exact.norm() and found.dtype == exact.dtype
    assert not frozen.times(x)[3].any() and not frozen.back(grad)[4].any()
    assert frozen.numbers.element_size() == 1


def test_an_adapter_over_8_bit_weights_trains_almost_as_over_the_weights():
    import torch

    def outcome(eight: bool):
        torch.manual_seed(0)
        model = adapted("llama")
        shake(model)
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        assert packed.prepare(model, eight)
        found = packed.logps(model, packed.pack(random_rows()))
        gradients = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(found.sum(), weights)])
        return model, found.detach(), gradients

    _, exact, exact_gradients = outcome(False)
    model, found, gradients = outcome(True)
    assert torch.allclose(found, exact, rtol=0.02) and not torch.equal(found, exact)
    assert torch.nn.functional.cosine_similarity(gradients, exact_gradients, dim=0) > 0.98
    held = [module.base_layer.weight for module in model.modules() if hasattr(module, "lora_A")]
    assert held and not any(len(weight) for weight in held)  # they are kept in 8 bits only


@pytest.mark.parametrize("steps", [(16, 64), (64, 512)])
def test_padding_changes_no_log_probability(steps):
    import torch

    model = adapted("llama")
    shake(model)
    packed.prepare(model)
    rows = random_rows()
    mixed = [tuple(torch.cat([mine[:max(1, len(mine) - 3)], other[-4:]]) for mine, other in zip(row, beside, strict=True))
             for row, beside in zip(rows, rows[1:] + rows[:1], strict=True)]

    def outcome(steps: tuple, memory: attention.Memory):
        given = accelerator.Rows.of(batch_of(rows, mixed), True, True, steps)
        assert any(given.shared)
        policy = packed.logps(model, given.policy, memory=memory)
        with torch.no_grad():
            again = packed.logps(model, given.mismatched, memory=memory, again=True)
            return given, torch.cat([policy, again, accelerator.logps_with_new(model, given, list(range(8)), memory)])

    room = attention.Memory()
    room.room, room.capacity = {}, 600
    given, found = outcome(steps, room)
    assert given.policy.input_ids.shape[1] % steps[0] == given.mismatched.input_ids.shape[1] % steps[0] == 0
    assert len(given.mismatched.keys) % steps[1] == 0
    assert torch.allclose(found, outcome((0, 0), attention.Memory())[1], rtol=1e-6)


def test_what_it_is_not_made_for_is_refused(monkeypatch):
    import torch
    from llamafactory.train.kto import workflow  # noqa: F401  once imported: it asks for a GPU while it is, and remembers

    with pytest.raises(ValueError, match="fp8: the adapter is not plain LoRA"):
        packed.prepare(adapted("llama", lora_dropout=0.1), True)
    config = {"stage": "kto", "fp8": True, "finetuning_type": "lora"}
    assert enable.supports(config)[0]
    for key, value in (("quantization_bit", 4), ("lora_dropout", 0.1), ("use_dora", True)):
        assert "fp8 is for plain LoRA" in enable.supports(config | {key: value})[1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(RuntimeError, match="NVIDIA A100 has no 8-bit floats"):
        enable.install(fp8=True)
