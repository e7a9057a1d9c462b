"""Reading shapes out of config.json."""

from __future__ import annotations

import pytest

from backends.local.errors import ModelError, UnsupportedModel, WeightsDamaged
from backends.local.model_config import LayerSpec, Llama3Rope, ModelConfig

GEMMA: dict[str, object] = {
    "model_type": "gemma3_text",
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "intermediate_size": 96,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 16,
    "query_pre_attn_scalar": 64,
    "max_position_embeddings": 512,
    "eos_token_id": [1, 106],
}
LLAMA: dict[str, object] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
}


def test_gemma_reads_the_same_from_old_and_new_keys() -> None:
    """transformers 4 and 5 spell rotary bases and layer kinds differently; the shape is one."""
    old = ModelConfig.from_hf(
        GEMMA
        | {
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window_pattern": 6,
        }
    )
    new = ModelConfig.from_hf(
        GEMMA
        | {
            "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        }
    )
    assert old == new
    assert old.layers[5] == LayerSpec(window=None, rope_theta=1e6, rope_scale=8.0)
    assert old.layers[6] == LayerSpec(window=16, rope_theta=1e4, rope_scale=1.0)
    assert (old.eos_ids, old.attention_scale, old.embed_scale) == ((1, 106), 0.125, 8.0)


def test_llama_reads_the_same_from_old_and_new_keys() -> None:
    """The llama3 stretch is found in `rope_scaling` and in `rope_parameters`."""
    stretch = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    old = ModelConfig.from_hf(LLAMA | {"rope_theta": 5e5, "rope_scaling": stretch})
    new = ModelConfig.from_hf(LLAMA | {"rope_parameters": stretch | {"rope_theta": 5e5}})
    assert old == new
    assert old.llama3_rope == Llama3Rope(8.0, 1.0, 4.0, 128)
    assert old.layers[0] == LayerSpec(None, 5e5)
    assert not old.tie_embeddings


def test_layout_groups_layers_by_window() -> None:
    """Global layers first, then windows ascending; layers that read others' KV are in no group."""
    config = ModelConfig.synthetic(
        windows=(64, None, 32, 64, None), kv_sources={4: 1}, kv_heads=2, head_dim=16
    )
    layout = config.kv_layout("int8", block_tokens=32)
    found = [(g.id, g.layers, g.window, g.bytes_per_token) for g in layout.groups]
    assert found == [(0, (1,), None, 72), (1, (2,), 32, 72), (2, (0, 3), 64, 144)]
    assert layout.groups[0].parts == (32, 32, 4, 4)
    assert layout.block_tokens == 32
    assert config.kv_layout("float32").groups[0].parts == (128, 128)


@pytest.mark.parametrize(
    ("change", "error", "word"),
    [
        ({"model_type": "mamba"}, UnsupportedModel, "mamba"),
        ({"model_type": None}, UnsupportedModel, "None"),
        ({"vocab_size": "many"}, WeightsDamaged, "vocab_size"),
        ({"hidden_size": None}, WeightsDamaged, "hidden_size"),
        ({"num_hidden_layers": 0}, WeightsDamaged, "num_hidden_layers"),
        ({"hidden_act": "relu"}, UnsupportedModel, "relu"),
        ({"attention_bias": True}, UnsupportedModel, "attention_bias"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, UnsupportedModel, "yarn"),
        ({"num_key_value_heads": 3}, UnsupportedModel, "divide"),
        ({"eos_token_id": "x"}, WeightsDamaged, "eos_token_id"),
        ({"rope_scaling": 3}, WeightsDamaged, "rope_scaling"),
    ],
)
def test_what_cannot_run_is_one_clear_line(
    change: dict[str, object], error: type[ModelError], word: str
) -> None:
    """A missing key, a wrong value or an unknown feature is a typed error that names it."""
    with pytest.raises(error, match=word) as caught:
        ModelConfig.from_hf(LLAMA | change)
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("sources", [{0: 1}, {2: 2}, {1: 0, 2: 1}, {2: 0}])
def test_a_kv_source_must_be_an_earlier_owner_of_the_same_window(sources: dict[int, int]) -> None:
    """A layer may read only an earlier layer that owns KV, with its own window."""
    with pytest.raises(UnsupportedModel):
        ModelConfig.synthetic(windows=(None, None, 32), kv_sources=sources)
