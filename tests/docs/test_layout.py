"""The repository's layout."""

from tests.support.paths import ROOT


def test_no_package_shadows_the_standard_library():
    """`operator/` on the path must not become a package: `import collections` would die."""
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_tests_are_no_package():
    """Tests are imported one by one (importlib mode)."""
    assert not list((ROOT / "tests").rglob("__init__.py"))
