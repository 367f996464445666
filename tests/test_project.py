"""The house rules, checked: packages, the direction of imports, doctests, what may be missing."""

import ast
import configparser
import doctest
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = {
    "keras_attention": "keras_attention",
    "models": "keras_attention.models",
    "training": "keras_attention.training",
}
FORBIDDEN = {
    "keras_attention": ("keras_attention.models", "keras_attention.training", "tensorflow", "tensorflow_text"),
    "models": ("keras_attention.training",),
    "training": (),
}
IMPORT_ALL = "import keras_attention, keras_attention.models, keras_attention.training"


def installed_name(path):
    """keras_attention.training.tasks for training/tasks/__init__.py, and so on."""
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([INSTALLED[folder], *(part for part in rest if part != "__init__")])


def sources(folder):
    return sorted((ROOT / folder).rglob("*.py"))


MODULES = [installed_name(path) for folder in INSTALLED for path in sources(folder)]


def run_python(code, **environment):
    """Runs code in a fresh Python that stands in the repository's root."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_setup_cfg_lists_every_package():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    tree = {installed_name(path) for folder in INSTALLED for path in sources(folder) if path.name == "__init__.py"}
    assert set(settings["options"]["packages"].split()) == tree


def imported_names(path):
    """Every name that a file imports, in full: `from ..a import b` of keras_attention.x.y gives keras_attention.a.b."""
    name = installed_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_go_one_way(folder):
    names = [(path.relative_to(ROOT).as_posix(), name) for path in sources(folder) for name in imported_names(path)]
    assert any(name.split(".")[0] == "keras" for _, name in names)
    forbidden = tuple(f"{name}." for name in FORBIDDEN[folder])
    assert [(path, name) for path, name in names if f"{name}.".startswith(forbidden)] == []


@pytest.mark.parametrize("folder", ["models", "training"])
def test_a_bare_folder_import_is_refused(folder):
    result = run_python(f"import {folder}")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ") and INSTALLED[folder] in last


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_the_docstrings_run(name):
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


def test_importing_brings_in_nothing_that_is_not_needed():
    # Keras itself imports matplotlib where it can, so matplotlib is hidden rather than looked for.
    code = f"""
import sys
sys.modules["matplotlib"] = None
{IMPORT_ALL}
print(sorted({{"tensorflow_text", "click", "babel", "sentencepiece", "koreanize_matplotlib"}} & set(sys.modules)))
"""
    result = run_python(code, KERAS_BACKEND="tensorflow")
    assert (result.returncode, result.stdout) == (0, "[]\n"), result.stderr


@pytest.mark.backends
@pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="JAX is not installed")
def test_importing_works_without_tensorflow_and_the_extras():
    code = f"""
import sys
for name in ("tensorflow", "tensorflow_text", "matplotlib", "click", "babel", "sentencepiece", "tensorboard"):
    sys.modules[name] = None
{IMPORT_ALL}
print(sys.modules["keras"].backend.backend())
"""
    result = run_python(code, KERAS_BACKEND="jax")
    assert (result.returncode, result.stdout) == (0, "jax\n"), result.stderr


def test_no_file_names_a_folder_of_somebodys_machine():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    assert ROOT / "setup.cfg" in paths
    machine = re.compile(rb"(^|[^\w.])/(home|Users|root|work)/", re.MULTILINE)
    assert [path.relative_to(ROOT).as_posix() for path in paths if machine.search(path.read_bytes())] == []
