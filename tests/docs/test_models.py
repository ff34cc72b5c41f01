"""docs/models.md lists exactly the models that the tests cover."""

from __future__ import annotations

from tools import make_models_doc


def test_the_table_has_the_rows_that_the_tests_use():
    """The table, which `make docs` writes, has the rows of the tests and no others."""
    text = make_models_doc.DOC.read_text()
    assert make_models_doc.rendered(text) == text
    assert len(make_models_doc.rows()) > 100
