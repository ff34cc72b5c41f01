"""Rules for the repository's layout."""

import ast

from tests.support.paths import ROOT

MODULES = sorted((ROOT / "tests").rglob("*.py"))


def imported(path, *, anywhere=True):
    """Return the modules that a file imports; without `anywhere`, only at its top level."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree) if anywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_no_package_shadows_the_standard_library():
    """The folder `operator` is not a package: on the path, it would break `import collections`."""
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_tests_are_not_a_package():
    """The folders of tests have no __init__.py: pytest imports each file by itself (importlib)."""
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_tests_import_support_and_not_each_other():
    """Test files import helpers from tests/support only; fixtures are in the folder's conftest."""
    others = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in MODULES
        for module in imported(path)
        if module.startswith("tests") and not module.startswith("tests.support")
    }
    assert others == set()


def test_fixtures_are_defined_beside_tests():
    """Fixtures are in test files and conftest files, where pytest finds them, not in support."""
    support = [path for path in MODULES if "support" in path.parts]
    assert support
    assert [path for path in support if "pytest.fixture" in path.read_text()] == []
    carried = [path for path in MODULES if "\n__all__" in path.read_text()]
    assert carried == []


def test_devkit_needs_neither_tests_nor_torch():
    """The package devkit imports neither tests nor torch: the demo runs without them."""
    for path in (ROOT / "devkit").glob("*.py"):
        roots = {module.partition(".")[0] for module in imported(path, anywhere=False)}
        assert roots.isdisjoint({"tests", "torch", "diffusers", "safetensors"}), path
        assert "tests" not in {module.partition(".")[0] for module in imported(path)}, path
