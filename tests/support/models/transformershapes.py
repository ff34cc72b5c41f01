"""Names and shapes of transformers in the original layout, made from the key tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sd_loader.convert.tables.architecture import Row
from sd_loader.convert.tables.dimensions import evaluate
from sd_loader.convert.tables.transformers import TransformerTable, load_transformer

LAYERS = 2
SIZES = {
    "inner": 48,
    "head": 8,
    "context": 24,
    "context_2": 20,
    "pooled": 12,
    "positions": 16,
    "inputs": 16,
    "outputs": 64,
    "mlp": 40,
    "shared_mlp": 36,
    "image": 28,
    "keys": 16,
    "approximator": 44,
    "approximator_inputs": 52,
    "text_layers": 13,
    "text_mlp": 48,
    "text_head": 6,
    "text_keys": 12,
    "time": 10,
    "patch": 2,
    "patch_0": 1,
    "patch_1": 2,
    "patch_2": 2,
    "cross": 22,
    "cross_context": 26,
    "image_keys": 30,
    "image_positions": 14,
    "experts": 4,
}
"""Small sizes, by their names in the key tables."""

Shape = tuple[int, ...]


def original_shapes(
    family: str, prefix: str = "", sizes: Mapping[str, int] = SIZES, layers: int = LAYERS
) -> dict[str, Shape]:
    """Return the shapes of a file in the original layout that has the tensors of all variants."""
    table = load_transformer(family)
    rows = table.component(_names(table, layers)).rows
    return {prefix + row.source: _source_shape(row, sizes) for row in rows}


def _names(table: TransformerTable, layers: int) -> Iterator[str]:
    for kind in table.kinds:
        for layer in range(layers):
            if kind.where != "but last" or layer < layers - 1:
                yield kind.row.source.replace("{}", str(layer), 1)


def _source_shape(row: Row, sizes: Mapping[str, int]) -> Shape:
    """Return the shape of the whole source tensor, of which the row may take only some rows."""
    height, *rest = (evaluate(size, sizes) for size in row.shape.split())
    match row.op.split():
        case ["rows", ends, "of", parts]:
            start, _, stop = ends.partition("-")
            return (height * int(parts) // (int(stop) - int(start)), *rest)
        case ["queries" | "keys" | "values"]:
            return (sizes["inner"] + 2 * sizes["keys"], *rest)
        case ["fold", _]:
            return (height * rest[0],)
        case _:
            return (height, *rest)
