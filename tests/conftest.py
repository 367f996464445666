"""What pytest does around the tests."""

import gc

import keras
import pytest


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """JAX keeps every program that it compiles; after some thousands its compiler crashes."""
    yield
    if keras.backend.backend() == "jax":
        import jax

        jax.clear_caches()
        gc.collect()


# Files whose graphs TensorFlow rewrites before it runs them, as it does everywhere but in tests. A third of the others'
# time would go into rewriting graphs that run once.
REWRITTEN = {"test_ctranslate2", "test_pipeline", "test_serving", "test_token_model", "test_train"}


@pytest.fixture(autouse=True, scope="module")
def graphs_as_they_are_traced(request):
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": request.module.__name__ not in REWRITTEN})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


@pytest.fixture
def no_export(monkeypatch):
    """Training without the seconds that pictures and the SavedModel take."""
    monkeypatch.setattr("keras_attention.models.Pipeline.export", lambda self, folder: folder)
    monkeypatch.setattr("keras_attention.training.train._plots", lambda *arguments: [])
