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


@pytest.fixture
def no_export(monkeypatch):
    """Training without the seconds that pictures and the SavedModel take."""
    monkeypatch.setattr("keras_attention.models.Pipeline.export", lambda self, folder: folder)
    monkeypatch.setattr("keras_attention.training.train._plots", lambda *arguments: [])
