"""Hidden states of Tunix's models: what is below their head, averaged over a prompt's tokens."""

from __future__ import annotations

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

if importlib.util.find_spec("tunix") is None:
    pytest.skip("tunix is absent: pip install 'bots-jax[tunix]'", allow_module_level=True)

from flax import nnx
from tunix.models.llama3 import model as llama
from tunix.models.qwen3 import model as qwen
from tunix.tests import test_common

from bots_jax import auto, features
from bots_jax.adapters.tunix import mean_states

pytestmark = pytest.mark.usefixtures("as_tunix_computes")

SIZES = {
    "num_layers": 2, "vocab_size": 32, "embed_dim": 16, "hidden_dim": 32, "num_heads": 2,
    "head_dim": 8, "num_kv_heads": 1, "rope_theta": 10_000, "norm_eps": 1e-5,
}  # fmt: skip
IDS = 1 + np.arange(60).reshape(12, 5) * 7 % 31


@pytest.fixture
def as_tunix_computes():
    """Its models mix ranks and dtypes, which our tests refuse elsewhere."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def models():
    """Untied and tied."""
    yield llama.Llama3(llama.ModelConfig(**SIZES, weight_tying=False), rngs=nnx.Rngs(0))
    yield qwen.Qwen3(qwen.ModelConfig(**SIZES, use_tied_embedding=True), rngs=nnx.Rngs(0))


@pytest.mark.parametrize("model", list(models()), ids=lambda model: type(model).__name__)
def test_the_states_give_the_logits_and_padding_changes_nothing(model) -> None:
    read = mean_states(model, pad=0)
    one = read(IDS[:, :1])  # of one token the mean is its state
    tokens = jnp.asarray(IDS[:, :1])
    logits, _ = model(tokens, jnp.zeros_like(tokens), None, jnp.ones((12, 1, 1), bool))
    tied = getattr(model, "lm_head", None) is None
    head = model.embedder.decode if tied else model.lm_head
    np.testing.assert_allclose(head(jnp.asarray(one)[:, None]), logits, atol=2e-2)
    wide = np.pad(IDS, ((0, 0), (3, 0)))
    np.testing.assert_allclose(read(wide), read(IDS), atol=2e-2)
    assert np.abs(read(IDS) - read(IDS[:, ::-1])).max() > 1e-3


class Letters:
    """A tokenizer: one token a character."""

    def encode(self, text: str) -> list[int]:
        return [1 + ord(c) % 9 for c in text]


def test_strings_become_features_of_a_pool() -> None:
    config = test_common.ModelConfig(num_layers=1, vocab_size=16)
    model = test_common.ToyTransformer(config=config, rngs=nnx.Rngs(0))  # has no final norm
    texts = [f"{i} + {i * 7 % 13} =" for i in range(40)]
    read = mean_states(model, Letters(), length=12)
    np.testing.assert_allclose(read(texts[:1]), read(texts[:3])[:1], atol=1e-5)
    x = features.hidden_states(read, texts, chunk=16)
    assert x.shape == (40, 32)
    selector = auto(batch_size=4, rollouts=2)
    _, batch = selector.select(jax.random.key(0), selector.init(features=x))
    assert np.all(np.asarray(batch.task_ids) >= 0)
    with pytest.raises(ValueError, match="neither final_norm nor lm_head"):
        mean_states(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))(IDS)
