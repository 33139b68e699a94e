"""A very small Llama model with random weights, as a GGUF file: the real code, in milliseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from region_core.weights.tokenizer_file import byte_letters

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("t h", "Ġ t", "Ġt h", "i n", "e r")
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LAYERS, HEADS, KV_HEADS, HEAD_WIDTH, HIDDEN = 2, 3, 1, 64, 256
WIDTH = HEADS * HEAD_WIDTH


def tokens() -> list[str]:
    letters = sorted(byte_letters(), key=byte_letters().__getitem__)
    return [*SPECIALS, *letters, *(merge.replace(" ", "") for merge in MERGES)]


def write(path: Path, seed: int = 1) -> Path:
    """Write the model to `path`."""
    import gguf

    vocabulary = tokens()
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_WIDTH)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] * len(SPECIALS) + [1] * (len(vocabulary) - len(SPECIALS)))
    writer.add_token_merges(list(MERGES))
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for name, shape in shapes(len(vocabulary)).items():
        values = np.ones(shape) if "norm" in name else rng.normal(0, 0.6 / shape[-1] ** 0.5, shape)
        if name == "token_embd.weight":
            values = rng.normal(0, 0.1, shape)
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def shapes(vocabulary: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, WIDTH),
        "output_norm.weight": (WIDTH,),
    }
    kv = KV_HEADS * HEAD_WIDTH
    for layer in range(LAYERS):
        block = {
            "attn_norm": (WIDTH,),
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (kv, WIDTH),
            "attn_v": (kv, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_norm": (WIDTH,),
            "ffn_gate": (HIDDEN, WIDTH),
            "ffn_up": (HIDDEN, WIDTH),
            "ffn_down": (WIDTH, HIDDEN),
        }
        found |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    return found
