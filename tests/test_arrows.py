"""Who may import whom, read from the source; and what stays light, tried in fresh processes."""

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("kxray", "training", "serving")


def module_name(path):
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_name(path): path
    for room in ROOMS
    for path in sorted((REPOSITORY / room).rglob("*.py"))
    if "__pycache__" not in path.parts
}


def imports_of(path):
    """Every dotted name that a file imports, wherever in the file, `import_module("a.b")` included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import, line {node.lineno}"
            # `from kxray import data` imports kxray.data; `from kxray.spec import ModelSpec` kxray.spec.
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            if node.args and isinstance(node.args[0], ast.Constant):
                found.add(node.args[0].value)
    return found


IMPORTS = {name: imports_of(path) for name, path in FILES.items()}


def inside(name, *packages):
    return any(name == package or name.startswith(package + ".") for package in packages)


def crossings(importers, forbidden, allowed=()):
    return [
        f"{importer} imports {imported}"
        for importer in sorted(importers)
        for imported in sorted(IMPORTS[importer])
        if inside(imported, *forbidden) and (importer, imported) not in allowed
    ]


def modules(*packages):
    return [name for name in IMPORTS if inside(name, *packages)]


def used_by(name):
    """A module and everything of its own room that it imports, directly or not."""
    seen, waiting = set(), [name]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            waiting += [other for other in IMPORTS[current] if other in IMPORTS and inside(other, "serving")]
    return seen


def test_the_reader_sees_imports():
    assert inside("kxray.io.film", "kxray.io") and not inside("kxray.iota", "kxray.io")
    assert "serving.export" in IMPORTS["training.job"]
    assert "kxray.layers" in IMPORTS["kxray._registration"]
    assert "kxray.spec" in IMPORTS["kxray.layers.film_input"]


def test_the_library_imports_no_program():
    assert not crossings(modules("kxray"), ("training", "serving"))


def test_training_and_serving_meet_on_disk():
    allowed = {("training.job", "serving.export"), ("training.generating.gan_job", "serving.export")}
    assert not crossings(modules("training"), ("serving",), allowed)
    assert not crossings(modules("serving"), ("training",))


def test_nothing_imports_tests_or_benchmarks():
    assert not crossings(IMPORTS, ("tests", "benchmarks"))


def test_the_spec_needs_the_standard_library_only():
    foreign = {name for name in IMPORTS["kxray.spec"] if name.split(".")[0] not in sys.stdlib_module_names}
    assert not foreign


def test_io_and_layers_stand_below_models():
    above = ("kxray.models", "kxray.explain", "kxray.metrics", "training", "serving")
    assert not crossings(modules("kxray.io", "kxray.layers"), above)
    assert not crossings(modules("kxray.io"), ("kxray.layers", "kxray.data"))
    assert not crossings(modules("kxray.layers"), ("kxray.io", "kxray.data"))


def test_explain_knows_no_particular_model():
    assert not crossings(modules("kxray.explain"), ("kxray.models", "kxray.data"))


def test_models_know_nothing_of_explanations_or_data():
    assert not crossings(modules("kxray.models"), ("kxray.explain", "kxray.data", "kxray.io"))


def test_the_client_uses_the_spec_and_io_only():
    client = used_by("serving.client")
    used = {name for module in client for name in IMPORTS[module] if inside(name, "kxray")}
    assert used and {name for name in used if not inside(name, "kxray.spec", "kxray.io")} == set()
    assert not client & {"serving.export", "serving.graph", "serving.server"}


def run(code_or_arguments):
    arguments = ["-c", code_or_arguments] if isinstance(code_or_arguments, str) else code_or_arguments
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


@pytest.mark.parametrize(
    "module", ["kxray", "kxray.spec", "kxray.io", "kxray.data", "serving.client", "training.fit"]
)
def test_importing_is_light(module):
    done = run(f"import {module}, sys; print(*{{'tensorflow', 'keras', 'jax', 'torch'}} & set(sys.modules))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize("module", ["training.fit", "training.sort"])
def test_help_comes_without_tensorflow(module):
    arguments = ["view_classifier", "--help"] if module == "training.fit" else ["--help"]
    started = time.monotonic()
    done = run(["-X", "importtime", "-m", module, *arguments])
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 20, "far more than the second that it takes on an idle machine"
    assert "Usage:" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "click" in imported and not imported & {"tensorflow", "keras"}


def test_the_list_of_recipes_comes_without_tensorflow():
    done = run(["-X", "importtime", "-m", "training.fit", "--help"])
    assert "view_classifier" in done.stdout
    assert "| tensorflow\n" not in done.stderr and " keras\n" not in done.stderr
