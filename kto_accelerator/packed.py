"""Log-probabilities of replies, computed without what they do not need: no padding, no logits where no reply token is
predicted, never the logits of a whole batch at once.

Rows are laid end to end as one sequence; attention stays within each row. Equal to LLaMA-Factory's `get_batch_logps`
on the padded batch, up to the order of additions. Nothing here waits for the GPU.
"""

from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType

from .enable import MODELS
from .lean import LeanLayer

LOGITS_AT_ONCE = 2**27
"""Logits in memory at a time: 0.5 GiB in float32, 1,046 tokens of Llama-3's 128,256 words."""


@dataclass
class Packed:
    """Rows end to end. T tokens, R rows, P reply tokens that are predicted.

    `input_ids`, `position_ids`: (1, T). `bounds`: (R+1,) int32, where rows begin and end. `longest`: tokens of the
    longest row. `places`: (P,) the position that predicts each reply token; `targets`: (P,) that token; `counts`: how
    many each row has.
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
    ids, positions, bounds, places, targets = (to_device(tensor, device) for tensor in tensors)
    return Packed(ids, positions, bounds, int(lengths.max()), places, targets, counts)


def to_device(tensor, device):
    """A copy on `device` that the CPU does not wait for: that takes pinned memory on this side."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def logps(model, rows: list[tuple], adapted: int | None = None):
    """(R,) float32: each row's summed log-probability of its reply.

    `adapted`: the adapter acts on the first so many rows only; then gradients must be off. `model` was prepared with
    `prepare`, and may be wrapped since (DDP, autocast).
    """
    import torch

    if not rows:
        return torch.empty(0, device=next(model.parameters()).device)
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
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    lean = [LeanLayer(layer) for layer in layers if LeanLayer.fits(layer)]
    base.forward = MethodType(_forward_beside(base.forward, lean), base)
    return len(lean) == len(layers) and not model.modules_to_save


def _forward_beside(stock, lean: list[LeanLayer]):
    """The causal model's forward: per-token log-probabilities where it is given packed rows, as it was otherwise."""

    def forward(self, *args, packed: Packed | None = None, **kwargs):
        if packed is None:
            return stock(*args, **kwargs)
        LeanLayer.refresh(lean)
        hidden = self.model(input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False,
                            cu_seq_lens_q=packed.bounds, cu_seq_lens_k=packed.bounds,
                            max_length_q=packed.longest, max_length_k=packed.longest)[0]
        return token_logps(self.get_output_embeddings(), hidden[0].index_select(0, packed.places), packed.targets)

    return forward


def token_logps(output_layer, hidden, targets):
    """(P,) float32 from hidden states (P, width): logits are made in chunks, and made again in the backward pass."""
    import torch
    from torch.utils.checkpoint import checkpoint

    def chunk(states, wanted):  # log_softmax: liger-kernel replaces torch's cross_entropy in the whole process
        return output_layer(states).float().log_softmax(-1).gather(1, wanted[:, None])[:, 0]

    size = max(1, LOGITS_AT_ONCE // output_layer.weight.shape[0])
    chunks = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(chunk, *part, use_reentrant=False, preserve_rng_state=False) for part in chunks])


def _attention_beside(stock):
    """transformers' sdpa attention, which also keeps packed rows apart."""

    def attention(module, query, key, value, mask, scaling=None, cu_seq_lens_q=None, max_length_q=None, **rest):
        if cu_seq_lens_q is None:
            return stock(module, query, key, value, mask, scaling=scaling, **rest)
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

    return torch.ops.aten._flash_attention_forward(
        query, key, value, bounds, bounds, longest, longest, 0.0, True, False, scale=scaling)[0]


def _row_by_row(query, key, value, bounds, longest: int, scaling):
    """The same in torch's public operations, one row at a time: for CPUs and float32."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    lengths = bounds.diff().tolist()
    states = [state.transpose(0, 1) for state in (query, key, value)]
    parts = zip(*(state.split(lengths, dim=1) for state in states), strict=True)
    return torch.cat([attend(q[None], k[None], v[None], is_causal=True, scale=scaling, enable_gqa=True)[0]
                      for q, k, v in parts], dim=1).transpose(0, 1)


@contextmanager
def _adapter_on_first(tokens: int | None):
    """Adapters act on the first so many tokens of the packed sequence only."""
    LeanLayer.first_tokens = tokens
    try:
        yield
    finally:
        LeanLayer.first_tokens = None
