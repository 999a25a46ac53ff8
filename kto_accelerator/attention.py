"""Attention that keeps packed rows apart and lets them share the keys and values of a prompt: for packed.py."""


class Memory(dict):
    """Keys and values of a pass, by layer: filled by a pass that is given an empty one, taken by passes that share its prompts.

    `room`: tensors of `capacity` tokens, by layer, to keep them in; {}: none are made until then. None: anywhere.
    """

    room: dict | None = None
    capacity = 0

    def keep(self, layer: int, key, value) -> None:
        if self.room is None:
            self[layer] = key.detach(), value.detach()
            return
        if layer not in self.room:
            self.room[layer] = [state.new_zeros(self.capacity, *state.shape[1:]) for state in (key, value)]
        for there, state in zip(self.room[layer], (key, value), strict=True):
            there[:len(state)].copy_(state.detach())
        self.fill(len(key), [layer])

    def fill(self, tokens: int, layers: list[int] | None = None) -> None:
        """Say that the room's first `tokens` places are this pass's."""
        for layer in self.room if layers is None else layers:
            self[layer] = tuple(there[:tokens] for there in self.room[layer])


def attention_beside(stock):
    """transformers' sdpa attention, which also keeps packed rows apart, and lets them share keys and values."""
    import torch

    def attention(module, query, key, value, mask, scaling=None, cu_seq_lens_q=None, cu_seq_lens_k=None, max_length_q=None,
                  max_length_k=None, keys=None, memory=None, **rest):
        if cu_seq_lens_q is None:
            return stock(module, query, key, value, mask, scaling=scaling, **rest)
        if max_length_k > (rest.get("sliding_window") or max_length_k):
            raise ValueError(f"a row of {max_length_k} tokens, but attention slides over {rest['sliding_window']}")
        query, key, value = (state[0].transpose(0, 1) for state in (query, key, value))
        if keys is not None:
            there = memory[module.layer_idx] if memory else (key[:0], value[:0])
            key, value = (torch.cat(parts).index_select(0, keys) for parts in zip(there, (key, value), strict=True))
        elif memory is not None:
            memory.keep(module.layer_idx, key, value)
        fused = query.is_cuda and query.element_size() == 2
        bounds, longest = (cu_seq_lens_q, cu_seq_lens_k), (max_length_q, max_length_k)
        return (_fused if fused else _row_by_row)(query, key, value, bounds, longest, scaling)[None], None

    attention.knows_packed = True
    return attention


def _fused(query, key, value, bounds, longest, scaling):
    """(T, heads, width): torch's flash attention for rows of varying length, forward and backward.

    Of a row with more keys than queries, the queries are its last tokens.
    """
    import torch

    return torch.ops.aten._flash_attention_forward(query, key, value, *bounds, *longest, 0.0, True, False, scale=scaling)[0]


def _row_by_row(query, key, value, bounds, longest, scaling):
    """The same in torch's public operations, one row at a time: for CPUs and float32."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    lengths, key_lengths = (part.diff().tolist() for part in bounds)
    query, key, value = (state.transpose(0, 1) for state in (query, key, value))
    parts = zip(query.split(lengths, 1), key.split(key_lengths, 1), value.split(key_lengths, 1), strict=True)
    found = []
    for q, k, v in parts:
        own, every = q.shape[1], k.shape[1]
        mask = None if own == every else torch.ones(own, every, dtype=torch.bool, device=q.device).tril(every - own)
        found.append(attend(q[None], k[None], v[None], attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True)[0])
    return torch.cat(found, dim=1).transpose(0, 1)
