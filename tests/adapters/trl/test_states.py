"""Hidden states of a Hugging Face model, tiny and of random weights."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from bots_jax import features  # noqa: E402
from bots_jax.adapters.pytorch import mean_states  # noqa: E402


def test_the_states_of_a_language_model_are_those_below_its_head() -> None:
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    ids = 1 + np.arange(60).reshape(12, 5) * 7 % 31
    ids[::3, :2] = 0
    found = mean_states(model, pad=0)(ids)
    with torch.no_grad():
        tokens = torch.as_tensor(ids)
        out = model(
            input_ids=tokens, attention_mask=(tokens != 0).long(), output_hidden_states=True
        )
    real = (ids != 0)[..., None]
    wanted = (out.hidden_states[-1].numpy() * real).sum(axis=1) / real.sum(axis=1)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert features.hidden_states(mean_states(model, pad=0), ids, components=4).shape == (12, 4)
