"""Fields that came later must not change the fingerprints of tokenizers that were made before."""

import json

from beit.common.config import config_from_dict
from beit.common.tokenizer import BUNDLED_DIR, load_tokenizer
from beit.common.tokenizers.dvae_config import DiscreteVAEConfig

FIRST_FIELDS = {"vocab_size": 8192, "downsampling": 8, "width": 128, "num_blocks": 4, "code_dim": 32}


def test_identity_of_a_first_tokenizer_has_the_first_fields_only() -> None:
    assert DiscreteVAEConfig().identity() == FIRST_FIELDS


def test_later_fields_enter_the_identity_when_they_matter() -> None:
    grey = DiscreteVAEConfig(channels=1, reconstruction="logit_laplace")
    assert grey.identity() == {**FIRST_FIELDS, "channels": 1, "reconstruction": "logit_laplace"}


def test_bundled_tokenizer_still_has_the_fingerprint_it_was_made_with() -> None:
    settings = json.loads((BUNDLED_DIR / "mini" / "config.json").read_text())
    config = config_from_dict(DiscreteVAEConfig, settings["model"])
    assert (config.channels, config.reconstruction) == (3, "mse")
    assert load_tokenizer("mini").fingerprint == settings["fingerprint"]
