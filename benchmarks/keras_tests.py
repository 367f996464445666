"""Runs Keras's own tests of its attention layers, which its wheel holds, on ours in their place.

Prints every test that fails on purpose, with the reason. Ends with status 1 if another one fails, or if one of those
passes.
"""

import contextlib
import importlib.util
import sys

import keras
import pytest
from keras.src import layers

from keras_attention import MultiHeadAttention

MODULES = ("multi_head_attention_test", "grouped_query_attention_test")
OWN_METHOD = "a private method: here it takes the arguments of MultiHeadAttention's, and keys that are not repeated"
EXPECTED = {
    "MultiHeadAttentionTest::test_masking_with_different_shapes": "its mask holds floats, which are refused here",
    "GroupedQueryAttentionTest::test_shape_mismatch_error_query_value_dim_mismatch": (
        "query and value may differ in width here, and its key_shape is a number"
    ),
    "GroupedQueryAttentionTest::test_causal_only_skipped_for_subclass": OWN_METHOD,
    "GroupedQueryAttentionTest::test_compute_attention_combines_causal_and_explicit_mask_fused_fallback": OWN_METHOD,
    "GroupedQueryAttentionTest::test_compute_attention_combines_causal_and_explicit_mask_manual_path": OWN_METHOD,
}


@keras.saving.register_keras_serializable(package="keras_tests")
class GroupedQueryAttention(MultiHeadAttention):
    """Our layer under the names of keras.layers.GroupedQueryAttention."""

    def __init__(self, head_dim, num_query_heads, num_key_value_heads, **kwargs):
        super().__init__(num_query_heads, head_dim, num_key_value_heads=num_key_value_heads, **kwargs)

    @property
    def sliding_window(self):
        return self._sliding_window

    def get_config(self):
        config = super().get_config()
        del config["value_dim"]
        return {"head_dim": config.pop("key_dim"), "num_query_heads": config.pop("num_heads"), **config}


class Results:
    """A plugin of pytest that remembers what became of each test."""

    def __init__(self):
        self.passed, self.skipped, self.failed = [], [], {}

    def pytest_runtest_logreport(self, report):
        name = "::".join(report.nodeid.split("::")[1:])
        if report.failed:
            self.failed[name] = report.longreprtext
        elif report.skipped:
            self.skipped.append(name)
        elif report.when == "call":
            self.passed.append(name)


def main():
    layers.MultiHeadAttention = MultiHeadAttention
    layers.GroupedQueryAttention = GroupedQueryAttention
    files = [importlib.util.find_spec(f"keras.src.layers.attention.{module}").origin for module in MODULES]
    results = Results()
    with contextlib.redirect_stdout(None):
        options = ["-c", "/dev/null", "-p", "no:cacheprovider", "-p", "no:terminal"]
        status = pytest.main([*options, *files], plugins=[results])
    print(f"{len(results.passed)} passed, {len(results.skipped)} skipped, {len(results.failed)} failed.")
    for name in sorted(EXPECTED.keys() & results.failed):
        print(f"  {name}: {EXPECTED[name]}.")
    surprises = sorted(results.failed.keys() - EXPECTED) + sorted(EXPECTED.keys() - results.failed)
    for name in surprises:
        print(f"\n{name} {'failed:' if name in results.failed else 'did not fail.'}\n{results.failed.get(name, '')}")
    if surprises or not results.passed or status > pytest.ExitCode.TESTS_FAILED:
        sys.exit("The layers are not what EXPECTED says." if surprises else f"pytest ended with {status!r}.")


if __name__ == "__main__":
    main()
