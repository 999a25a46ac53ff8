"""Log-probabilities of replies, computed without what they do not need: no padding, no logits where no reply token is predicted,
never the logits of a whole batch at once. Made for helpers.accelerator; runs in the training's worker processes.

Rows are laid end to end as one sequence; attention stays within each row. Equal to LLaMA-Factory's `get_batch_logps` on the
padded batch, up to the order of additions.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType

MODELS = ("llama", "mistral", "qwen2", "qwen3")
"""Model types (config.json) whose attention is known to accept packed rows; each is tested."""
LOGITS_AT_ONCE = 2**27
"""Logits in memory at a time: 0.5 GiB in float32, 1,046 tokens of Llama-3's 128,256 words."""


@dataclass
class Packed:
    """Rows end to end. T tokens, R rows, P reply tokens that are predicted.

    `input_ids`, `position_ids`: (1, T). `bounds`: (R+1,) int32, where rows begin and end. `longest`: tokens of the longest row.
    `places`: (P,) the position that predicts each reply token; `targets`: (P,) that token; `counts`: how many each row has.
    """

    input_ids: object
    position_ids: object
    bounds: object
    longest: int
    places: object
    targets: object
    counts: list[int]


def rows_of(batch: dict, prefix: str = "") -> list[tuple]:
    """The rows of a padded batch as (input ids, labels), two tensors a row on the CPU, padding removed."""
    ids, labels, mask = (batch[f"{prefix}{name}"].cpu() for name in ("input_ids", "labels", "attention_mask"))
    return [(i[m], t[m]) for i, t, m in zip(ids, labels, mask.bool(), strict=True)]


def pack(rows: list[tuple], device) -> Packed:
    """`rows` end to end on `device`. A row's first token is never predicted; label -100 means: not a reply token."""
    import torch

    lengths = torch.tensor([len(ids) for ids, _ in rows])
    starts = lengths.cumsum(0) - lengths
    labels = torch.cat([torch.cat([row[1:], row.new_full((1,), -100)]) for _, row in rows])
    places = (labels != -100).nonzero().squeeze(1)
    counts = [int((row[1:] != -100).sum()) for _, row in rows]
    positions = torch.arange(len(labels)) - starts.repeat_interleave(lengths)
    bounds = torch.cat([starts, starts[-1:] + lengths[-1:]]).to(torch.int32)
    tensors = (torch.cat([ids for ids, _ in rows])[None], positions[None], bounds, places, labels[places])
    ids, positions, bounds, places, targets = (tensor.to(device, non_blocking=True) for tensor in tensors)
    return Packed(ids, positions, bounds, int(lengths.max()), places, targets, counts)


def logps(model, rows: list[tuple], adapted: int | None = None):
    """(R,) float32: each row's summed log-probability of its reply. `adapted`: the adapter acts on the first so many rows only.

    `model` was prepared with `prepare`, and may be wrapped since (DDP, autocast). With `adapted`, gradients must be off.
    """
    import torch

    packed = pack(rows, next(model.parameters()).device)
    tokens = None if adapted is None else sum(len(ids) for ids, _ in rows[:adapted])
    with _adapter_on_first(tokens):
        per_token = model(input_ids=packed.input_ids, packed=packed)
    return torch.stack([part.sum() for part in per_token.split(packed.counts)])


def prepare(model) -> bool:
    """Make a PEFT model understand `logps`. Returns whether all of its adapter can be limited to some rows (`adapted`).

    ValueError where the model's attention is not known to keep packed rows apart.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    base = model.get_base_model()
    kind, attention = base.config.model_type, base.config._attn_implementation
    if kind not in MODELS or attention not in ("sdpa", "flash_attention_2"):
        raise ValueError(f"packed rows are not proved for the model type {kind!r} with {attention!r} attention; "
                         f"known: {', '.join(MODELS)} with sdpa or flash_attention_2")
    stock = ALL_ATTENTION_FUNCTIONS["sdpa"]
    if not getattr(stock, "knows_packed", False):
        ALL_ATTENTION_FUNCTIONS["sdpa"] = _attention_beside(stock)
    base.forward = MethodType(_forward_beside(base.forward), base)
    lean = [_make_lean(module) for module in model.modules() if hasattr(module, "lora_A")]
    return all(lean) and not model.modules_to_save


def _forward_beside(stock):
    """The causal model's forward: per-token log-probabilities where it is given packed rows, what it was otherwise."""

    def forward(self, *args, packed: Packed | None = None, **kwargs):
        if packed is None:
            return stock(*args, **kwargs)
        hidden = self.model(input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False,
                            cu_seq_lens_q=packed.bounds, cu_seq_lens_k=packed.bounds,
                            max_length_q=packed.longest, max_length_k=packed.longest)[0]
        return token_logps(self.get_output_embeddings(), hidden[0].index_select(0, packed.places), packed.targets)

    return forward


def token_logps(output_layer, hidden, targets):
    """(P,) float32 from hidden states (P, width): the logits are made in chunks, and made again in the backward pass."""
    import torch
    from torch.utils.checkpoint import checkpoint

    def chunk(states, wanted):  # log_softmax: liger-kernel replaces torch's cross_entropy in the whole process
        return output_layer(states).float().log_softmax(-1).gather(1, wanted[:, None])[:, 0]

    size = max(1, LOGITS_AT_ONCE // output_layer.weight.shape[0])
    return torch.cat([checkpoint(chunk, states, wanted, use_reentrant=False, preserve_rng_state=False)
                      for states, wanted in zip(hidden.split(size), targets.split(size), strict=True)])


def _attention_beside(stock):
    """transformers' sdpa attention, which also keeps packed rows apart."""

    def attention(module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, max_length_q=None, **rest):
        if cu_seq_lens_q is None:
            return stock(module, query, key, value, attention_mask, scaling=scaling, **rest)
        if max_length_q > (rest.get("sliding_window") or max_length_q):
            raise ValueError(f"a row of {max_length_q} tokens, but attention slides over {rest['sliding_window']}")
        states = [state[0].transpose(0, 1) for state in (query, key, value)]
        fused = query.is_cuda and query.element_size() == 2
        return (_fused if fused else _row_by_row)(*states, cu_seq_lens_q, max_length_q, scaling)[None], None

    attention.knows_packed = True
    return attention


def _fused(query, key, value, bounds, longest: int, scaling):
    """(T, heads, width): torch's flash attention for rows of varying length, forward and backward."""
    import torch

    return torch.ops.aten._flash_attention_forward(query, key, value, bounds, bounds, longest, longest, 0.0, True, False,
                                                   scale=scaling)[0]


def _row_by_row(query, key, value, bounds, longest: int, scaling):
    """The same in torch's public operations, one row at a time: for CPUs and float32."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    lengths = bounds.diff().tolist()
    states = [state.transpose(0, 1) for state in (query, key, value)]
    parts = zip(*(state.split(lengths, dim=1) for state in states), strict=True)
    return torch.cat([scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=scaling, enable_gqa=True)[0]
                      for q, k, v in parts], dim=1).transpose(0, 1)


_first_tokens: int | None = None
"""While set: the adapter acts on the first so many tokens of the packed sequence only."""


@contextmanager
def _adapter_on_first(tokens: int | None):
    global _first_tokens
    _first_tokens = tokens
    try:
        yield
    finally:
        _first_tokens = None


def _make_lean(layer) -> bool:
    """Give one LoRA layer a forward with fewer passes over memory; False where it is of a kind that must stay as it is."""
    import torch
    from peft.tuners.lora.layer import Linear

    plain = type(layer) is Linear and type(layer.base_layer) is torch.nn.Linear and len(layer.active_adapters) == 1
    if not plain or any(parameter.requires_grad for parameter in layer.base_layer.parameters()):
        return False
    name = layer.active_adapters[0]
    down, up, drop = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    if layer.use_dora[name] or up.bias is not None or getattr(drop, "p", 0) or hasattr(down.weight, "ds_id"):
        return False
    stock, scale, adapted_linear = layer.forward, layer.scaling[name], _adapted_linear()

    def forward(self, x, *args, **kwargs):
        if self.disable_adapters or self.merged or args or kwargs:
            return stock(x, *args, **kwargs)
        base, device = self.base_layer, x.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else base.weight.dtype
        states, weight, a, b = (t.to(kind) for t in (x.reshape(-1, x.shape[-1]), base.weight, down.weight, up.weight))
        bias = None if base.bias is None else base.bias.to(kind)
        return adapted_linear(states, weight, bias, a, b, scale, _first_tokens).view(*x.shape[:-1], -1)

    layer.forward = MethodType(forward, layer)
    return True


_function = None


def _adapted_linear():
    """x·Wᵀ + scale·(x·Aᵀ)·Bᵀ as one autograd function, W frozen: keeps x once, adds in place, forward and backward."""
    global _function
    if _function:
        return _function.apply
    import torch
    from torch.nn.functional import linear

    class AdaptedLinear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, bias, down, up, scale, first):
            result = linear(x, weight, bias)
            low = x[:first] @ down.t()
            result[:first].addmm_(low, up.t(), alpha=scale)
            ctx.save_for_backward(x, weight, down, up, low)
            ctx.scale = scale
            return result

        @staticmethod
        def backward(ctx, grad):
            x, weight, down, up, low = ctx.saved_tensors
            grad_low = (grad @ up) * ctx.scale
            grad_x = (grad @ weight).addmm_(grad_low, down) if ctx.needs_input_grad[0] else None
            return grad_x, None, None, grad_low.t() @ x, (grad.t() @ low) * ctx.scale, None, None

    _function = AdaptedLinear
    return _function.apply
