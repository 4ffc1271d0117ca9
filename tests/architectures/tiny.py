# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of every class that transformers registers for causal language modelling."""

import inspect
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlkern.trainer.models.load import character_tokenizer

V = 32
ALPHABET = "0123456789+=abcdefghijklmnopq"  # and three special tokens
KINDS: dict[str, str] = dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

# By what configurations call a size; a configuration takes those that it has.
_SIZES: dict[int, str] = {
    V: "vocab_size audio_vocab_size vocab_size_per_layer_input pronunciation_vocab_size"
    " shape_vocab_size unpadded_vocab_size"
    # and the width, which is 32 too
    " hidden_size d_model n_embd emb_dim embedding_size hidden_size_global input_embedding_size"
    " output_embedding_size lru_width backbone_hidden_size",
    48: "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim dim_ff dff d_inner"
    " feed_forward_size ffn_hidden_size intermediate_size_mlp dense_intermediate_size",
    16: "moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size"
    " shared_intermediate_size moe_shared_expert_intermediate_size"
    " shared_experts_intermediate_size pronunciation_embed_dim shape_embed_dim",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers"
    " num_decoder_layers num_encoder_layers num_key_value_heads moe_topk moe_k num_experts_per_tok"
    " index_n_heads linear_num_key_heads num_codebooks prompt_length swa_num_key_value_heads",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads attention_heads"
    " encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads num_experts"
    " n_routed_experts num_local_experts moe_num_experts qk_rope_head_dim qk_nope_head_dim"
    " linear_num_value_heads linear_num_heads mamba_chunk_size chunk_size rotary_dim adapter_rank"
    " swa_num_attention_heads",
    8: "head_dim kv_channels dim_head kv_lora_rank q_lora_rank v_head_dim index_head_dim"
    " linear_key_head_dim linear_value_head_dim linear_head_dim mamba_d_state state_size"
    " ssm_state_size mamba_n_heads mamba_d_head mamba_num_heads mamba_head_dim"
    " hidden_size_per_layer_input router_hidden_size query_pre_attn_scalar swa_head_dim"
    " o_lora_rank",
    # Shorter than the rows that are compared.
    10: "sliding_window window_size local_attention attention_window_size sliding_window_size"
    " attention_chunk_size local_attention_window_len",
    64: "max_position_embeddings n_positions max_seq_len max_target_positions n_ctx context_length"
    " index_topk mamba_d_ssm max_source_positions",
    1: "n_shared_experts moe_num_shared_experts num_shared_experts n_group topk_group"
    " mamba_n_groups n_groups first_k_dense_replace num_dense_layers eos_token_id"
    " decoder_start_token_id forced_eos_token_id",
    0: "pad_token_id num_kv_shared_layers",
}
_SIZE_OF = {name: size for size, names in _SIZES.items() for name in names.split()}

_LATENT = {"num_key_value_heads": 4}
_DECODER = {"is_decoder": True}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_CONV = {"layer_types": ["conv", "full_attention"]}
_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
           "num_attention_heads": 2, "image_size": 16, "patch_size": 8}  # fmt: skip
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_SIGLIP = {"model_type": "siglip_vision_model", **_VISION}
_MORE: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        "axk1 axk2 bailing_hybrid deepseek_v2 deepseek_v3 deepseek_v32 dots3_note_text"
        " glm4_moe_lite glm_moe_dsa kimi_linear longcat_flash minicpm3 youtu".split(),
        _LATENT,
    ),
    **dict.fromkeys(
        "bert bert-generation camembert data2vec-text electra ernie megatron-bert rembert roberta"
        " roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl".split(),
        _DECODER,
    ),
    **dict.fromkeys("qwen3_5_text qwen3_5_moe_text qwen3_next".split(), _LINEAR),
    **dict.fromkeys("lfm2 lfm2_moe lfm3".split(), _CONV),
    "bailing_hybrid": {**_LATENT, "layer_group_size": 2},
    "bamba": {"attn_layer_indices": [1]},
    "big_bird": {**_DECODER, "attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
             "ffn_config": {"moe_num_experts": 4, "moe_top_k": 2, "ffn_hidden_size": 48}},
    "gemma3": {"vision_config": _SIGLIP, "mm_tokens_per_image": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_offset": 1},
    "kimi_linear": {**_LATENT, **_LINEAR},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "qwen4_exp_text": {**_LINEAR, "indexer_n_heads": 2, "indexer_kv_heads": 1,
                       "indexer_head_dim": 8, "indexer_budget": 64, "indexer_compress_ratio": 2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"is_decoder": True, "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16],
                 "attention_head_size": 8, "attn_layers": ["local", "local"],
                 "local_attn_chunk_length": 8, "lsh_attn_chunk_length": 8, "num_buckets": 4},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX", **_DECODER},
    "longcat_flash": {**_LATENT, "qk_rope_head_dim": 8, "head_dim": 8},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_hidden_layers": 4,
              "n_mamba_heads": 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"]},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip


# Kinds that cannot be made alone, and what they lack.
NOT_MADE = {
    "gemma3n": "its image part needs the package timm; gemma3n_text is its text part",
    "gemma4_assistant": "it drafts for another model, whose cache it reads",
    "gemma4_unified_assistant": "it drafts for another model, whose cache it reads",
}


def sizes_of(config: Any, more: dict[str, Any]) -> dict[str, Any]:
    """Returns the sizes that a class of configurations takes."""
    names = inspect.signature(config.__init__).parameters
    return {**{n: size for n, size in _SIZE_OF.items() if n in names}, **more}


def config_of(kind: str) -> Any:
    """Returns the tiny configuration of a kind, of its text part where its class has no other."""
    config = CONFIG_MAPPING[kind]
    model = getattr(transformers, KINDS[kind])
    text = model.config_class.model_type
    if not issubclass(config, model.config_class) and text in CONFIG_MAPPING and text != kind:
        return config_of(text) if text in KINDS else _made(model.config_class, text)
    return _made(config, kind)


def _made(config: Any, kind: str) -> Any:
    more = _MORE.get(kind, {})
    parts: dict[str, Any] = {}
    for name, part in getattr(config, "sub_configs", {}).items():
        if part.__name__ != "AutoConfig":
            parts[name] = sizes_of(part, {})
        elif name in ("text_config", "decoder"):
            own = "llama" if "gemma4" not in kind else "gemma4_text"
            parts[name] = {"model_type": own, **sizes_of(CONFIG_MAPPING[own], {})}
    return config(**{**sizes_of(config, {"bos_token_id": 2}), **parts, **more})


def tiny_model(kind: str) -> Any:
    """Returns a random model whose weights are large enough for a mistake to show."""
    torch.manual_seed(0)
    model = getattr(transformers, KINDS[kind])(config_of(kind)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.mul_(3)
    return model


def tokenizer() -> Any:
    """Returns a tokenizer of as many tokens as the models have."""
    return character_tokenizer(ALPHABET)
