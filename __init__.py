"""BEiT: BERT pre-training of image transformers, from unlabelled images to a fine-tuned model.

The command line is `beit`. From Python:

    load_encoder     a pre-trained encoder, with the transform of its images
    load_model       a fine-tuned model, with its classes: from pictures to labels, or to the class of every pixel
    pool_features    a sequence of features to one vector per image
    grid_features    a sequence of features to a map per image
    open_store       a token store: images, views and visual tokens, by position
    load_tokenizer   a tokenizer: pixels to visual tokens, and back
    render_view      a stored view of an image, as training sees it

Each is loaded when it is first used, so that `import beit` costs nothing. `help(beit.load_encoder)` says what goes in
and comes out, with an example; docs/python.md puts them together.
"""

__version__ = "0.1.0"

_HOMES = {
    "load_encoder": "beit.common.encoder",
    "load_model": "beit.finetune.prediction.loading",
    "pool_features": "beit.common.vit.features",
    "grid_features": "beit.common.vit.vit",
    "open_store": "beit.common.store",
    "load_tokenizer": "beit.common.tokenizer",
    "render_view": "beit.common.views",
}
__all__ = [
    "__version__",
    "grid_features",
    "load_encoder",
    "load_model",
    "load_tokenizer",
    "open_store",
    "pool_features",
    "render_view",
]

TYPE_CHECKING = False  # what type checkers take for true; the one of `typing` would be an import
if TYPE_CHECKING:
    from beit.common.encoder import load_encoder
    from beit.common.store import open_store
    from beit.common.tokenizer import load_tokenizer
    from beit.common.views import render_view
    from beit.common.vit.features import pool_features
    from beit.common.vit.vit import grid_features
    from beit.finetune.prediction.loading import load_model
else:  # hidden from type checkers, which would believe that any name is there

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value

    def __dir__():
        return sorted({*globals(), *__all__})
