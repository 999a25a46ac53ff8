"""A LoRA layer with fewer passes over memory and fewer kernels than peft's, for packed.py.

peft casts each layer's input to float32 and back, keeps a copy of it, and adds the adapter's part in an operation of its
own. Here the input is kept once, parts are added in place, forward and backward, and all adapters are cast at once.
"""

from functools import cache, partial
from types import MethodType
from typing import ClassVar

from . import fp8


class LeanLayer:
    """Takes the place of one peft layer's forward: x·Wᵀ + scale·(x·Aᵀ)·Bᵀ, with W frozen."""

    first_tokens: ClassVar[int | None] = None
    """While set: adapters act on the first so many tokens only. Of use without gradients only."""

    def __init__(self, layer):
        name = layer.active_adapters[0]
        self.base, self.scale, self.stock = layer.base_layer, layer.scaling[name], layer.forward
        self.weights = [layer.lora_A[name].weight, layer.lora_B[name].weight]
        self.cast = self.weights
        self.frozen = FourBit(self.base.weight) if in_four_bits(layer) else None
        self.kind = (self.frozen or self.base.weight).dtype
        layer.forward = MethodType(self.forward_of(), layer)

    @staticmethod
    def fits(layer) -> bool:
        """Whether `layer` is of the plain kind: one adapter, no dropout, no DoRA, whole or in bitsandbytes' 4 bits, not sharded."""
        import torch
        from peft.tuners.lora.layer import Linear

        plain = in_four_bits(layer) or (type(layer) is Linear and type(layer.base_layer) is torch.nn.Linear)
        if not plain or len(layer.active_adapters) != 1 or any(parameter.requires_grad for parameter in layer.base_layer.parameters()):
            return False
        name = layer.active_adapters[0]
        down, up, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
        sharded = hasattr(down.weight, "ds_id")  # DeepSpeed gathers weights when a module is called; these are not
        return not (layer.use_dora[name] or up.bias is not None or getattr(dropout, "p", 0) or sharded)

    def forward_of(lean):
        def forward(self, x, *args, **kwargs):
            if self.disable_adapters or self.merged or args or kwargs:
                return lean.stock(x, *args, **kwargs)
            kind = lean.dtype()
            states = x.reshape(-1, x.shape[-1]).to(kind)
            weight = None if lean.frozen else lean.base.weight.to(kind)
            bias = None if lean.base.bias is None else lean.base.bias.to(kind)
            settings = (lean.scale, LeanLayer.first_tokens, lean.frozen)
            return adapted_linear()(states, weight, bias, *lean.weights, *lean.cast, *settings).view(*x.shape[:-1], -1)

        return forward

    def quantise(self) -> None:
        """Keep the frozen weight in 8 bits (fp8.py), where GPUs can multiply it: its sizes are multiples of 16."""
        weight = self.base.weight
        if not any(size % 16 for size in weight.shape):
            self.frozen = fp8.Frozen(weight)
            weight.data = weight.new_empty(0)

    def dtype(self):
        """That products are computed in: autocast's where it is on."""
        import torch

        device = self.weights[0].device.type
        if torch.is_autocast_enabled(device):
            return torch.get_autocast_dtype(device)
        return self.kind

    @staticmethod
    def refresh(layers: list["LeanLayer"]) -> None:
        """Cast all adapters to the dtype that the model computes in: one operation for all."""
        import torch

        for layer in layers:
            kind = layer.dtype()
            if layer.weights[0].dtype == kind:
                layer.cast = layer.weights
            elif layer.cast[0].dtype != kind:
                layer.cast = [torch.empty_like(weight, dtype=kind) for weight in layer.weights]
        layers = [layer for layer in layers if layer.cast is not layer.weights]
        with torch.no_grad():
            if layers:
                torch._foreach_copy_([part for layer in layers for part in layer.cast],
                                     [part for layer in layers for part in layer.weights])


NORMS = ("LigerRMSNorm", "LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "Phi3RMSNorm")
"""Classes of norms that are x / rms(x) * weight."""


def lean_norms(model) -> None:
    """On a GPU, compute RMS norms by torch's fused kernel.

    Liger's backward is compiled anew for every new ceil(tokens / 132), 140 ms a time, and packed rows come in all lengths; it also
    makes gradients of the norm's weights, which are frozen.
    """
    import torch

    fused = getattr(torch.ops.aten, "_fused_rms_norm", None)

    def forward(norm, stock, states):
        if not states.is_cuda or states.dtype != norm.weight.dtype:
            return stock(states)
        return fused(states, norm.weight.shape, norm.weight, norm.variance_epsilon)[0]

    for module in model.modules():
        if fused and type(module).__name__ in NORMS and not module.weight.requires_grad:
            module.forward = partial(forward, module, module.forward)


def remember(model) -> None:
    """Let `model.parameters()` and `model.train()` not walk through thousands of modules, three times a step while the GPU waits.

    Parameters are neither added nor taken away from here on; whether it trains is switched for the whole model.
    """
    every, train = list(model.parameters()), model.train
    model.parameters = lambda recurse=True: iter(every)
    model.train = lambda mode=True: model if mode == model.training else train(mode)


def in_four_bits(layer) -> bool:
    """Whether a peft layer's weight is quantised by bitsandbytes to 4 bits; told by name, for that package need not be there."""
    return type(layer).__name__ == type(layer.base_layer).__name__ == "Linear4bit"


class FourBit:
    """A frozen weight (N, K) in 4 bits: made whole for each product and dropped, as bitsandbytes does it.

    Its scales, quantised themselves, are made whole once: 0.06 bytes a weight, for two kernels less a product.
    """

    def __init__(self, weight):
        from bitsandbytes.functional import QuantState, dequantize_blockwise

        state = weight.quant_state
        scales = dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
        self.numbers, self.dtype = weight.data, state.dtype
        self.state = QuantState(scales.float(), state.shape, state.code, state.blocksize, state.quant_type, state.dtype)

    def whole(self, dtype):
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.numbers, self.state).to(dtype)

    def times(self, x, bias=None):
        """x·Wᵀ + bias: (T, N) in x's dtype, from (T, K)."""
        from torch.nn.functional import linear

        return linear(x, self.whole(x.dtype), bias)

    def back(self, grad):
        """grad·W: (T, K) in grad's dtype, from (T, N)."""
        return grad @ self.whole(grad.dtype)


@cache
def adapted_linear():
    """The autograd function behind a lean layer, made once: torch is imported late."""
    import torch
    from torch.nn.functional import linear

    class AdaptedLinear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, bias, down, up, down_cast, up_cast, scale, first, frozen):
            low = linear(x[:first], down_cast)
            if frozen or first is not None or bias is not None:
                result = frozen.times(x, bias) if frozen else linear(x, weight, bias)
                result[:first].addmm_(low, up_cast.t(), alpha=scale)
            else:  # the small product first: the large one adds to it while it computes; the other way round memory is waited for
                result = torch.addmm(x.new_empty(len(x), len(weight)), low, up_cast.t(), beta=0, alpha=scale).addmm_(x, weight.t())
            ctx.save_for_backward(x, weight, down_cast, up_cast, low)
            ctx.scale, ctx.dtype, ctx.frozen = scale, down.dtype, frozen
            return result

        @staticmethod
        def backward(ctx, grad):
            x, weight, down, up, low = ctx.saved_tensors
            grad_low = (grad @ up).mul_(ctx.scale)
            grad_x = None
            if ctx.needs_input_grad[0]:
                grad_x = ctx.frozen.back(grad).addmm_(grad_low, down) if ctx.frozen else (grad_low @ down).addmm_(grad, weight)
            grad_down, grad_up = (grad_low.t() @ x).to(ctx.dtype), (grad.t() @ low).to(ctx.dtype).mul_(ctx.scale)
            return grad_x, None, None, grad_down, grad_up, None, None, None, None, None

    return AdaptedLinear.apply
