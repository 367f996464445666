"""Builds the wheel from a clean copy of this tree, installs it elsewhere and imports the public names from it.

Run by `make wheel-check`. Ends with status 1 and one sentence at the first thing that is wrong.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = {
    "keras_attention": "keras_attention",
    "models": "keras_attention/models",
    "training": "keras_attention/training",
}

# Runs in a process of its own. argv: the folder that holds the installed wheel.
IMPORTS = """
import importlib, importlib.metadata, pathlib, sys

site = pathlib.Path(sys.argv[1])
sys.path.insert(0, str(site))
for name in ("keras_attention", "keras_attention.models", "keras_attention.training"):
    module = importlib.import_module(name)
    for public in module.__all__:
        getattr(module, public)
    print(f"{name}: {len(module.__all__)} public names")
(distribution,) = importlib.metadata.distributions(name="keras-attention-zoo", path=[str(site)])
for script in distribution.entry_points:
    print(f"command {script.name}: {script.load().__module__}")
for name, module in sys.modules.items():
    if name.split(".")[0] == "keras_attention" and site not in pathlib.Path(module.__file__ or "").parents:
        sys.exit(f"{name} was imported from {module.__file__}, not from the wheel.")
"""


def main():
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder).resolve()
        files = copy_tree(folder / "tree")
        wheel = build(folder / "tree", folder / "wheels")
        check_contents(wheel, files)
        install_and_import(wheel, folder)
    print(f"{wheel.name} is whole.")


def copy_tree(target):
    """Copies the files that git does not ignore and returns their relative paths."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [Path(name) for name in sorted(set(listed.split("\0")) - {""}) if (ROOT / name).is_file()]
    for path in files:
        (target / path.parent).mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target / path)
    return files


def build(tree, target):
    """Builds the wheel of a tree and returns its path."""
    run_pip("wheel", "--no-deps", "--wheel-dir", target, tree)
    (wheel,) = target.glob("*.whl")
    return wheel


def check_contents(wheel, files):
    """Checks that the wheel has every file of the three packages, and nothing beside them."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {"/".join([INSTALLED[path.parts[0]], *path.parts[1:]]) for path in files if path.parts[0] in INSTALLED}
    missing = sorted(expected - names)
    if missing:
        sys.exit(
            f"The wheel lacks {', '.join(missing)}: list the package or the data in setup.cfg ([options] packages, "
            "[options.package_data])."
        )
    information = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    beside = sorted({name.split("/")[0] for name in names} - {"keras_attention", information})
    if beside:
        sys.exit(f"The wheel installs {', '.join(beside)} beside keras_attention: see package_dir in setup.cfg.")
    if f"{information}/licenses/LICENSE" not in names:
        sys.exit("The wheel lacks the LICENSE: see license_files in setup.cfg.")


def install_and_import(wheel, folder):
    """Installs the wheel into a folder of its own and imports it there, far from the tree."""
    run_pip("install", "--no-deps", "--target", folder / "site", wheel)
    (folder / "elsewhere").mkdir()
    command = [sys.executable, "-I", "-c", IMPORTS, str(folder / "site")]
    if subprocess.run(command, cwd=folder / "elsewhere").returncode:
        sys.exit("The wheel's public names cannot be imported from it; the reason stands above.")


def run_pip(*arguments):
    options = ["--quiet", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", arguments[0], *options, *map(str, arguments[1:])]
    if subprocess.run(command).returncode:
        sys.exit(f"pip {arguments[0]} failed; the reason stands above.")


if __name__ == "__main__":
    main()
