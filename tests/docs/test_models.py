"""docs/models.md lists exactly what the tests prove."""

from __future__ import annotations

from tools import make_models_doc


def test_the_table_is_made_of_the_rows_that_tests_run_over():
    """`make docs` writes it."""
    text = make_models_doc.DOC.read_text()
    assert make_models_doc.rendered(text) == text
    assert len(make_models_doc.rows()) > 100
