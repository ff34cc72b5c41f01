"""Names and shapes of the tensors in single layers."""

from __future__ import annotations

Shape = tuple[int, ...]
Shapes = dict[str, Shape]


def norm(shapes: Shapes, name: str, width: int) -> None:
    """Add a norm with weight and bias."""
    shapes[f"{name}.weight"] = (width,)
    shapes[f"{name}.bias"] = (width,)


def linear(shapes: Shapes, name: str, out: int, width: int) -> None:
    """Add a linear layer from `width` to `out` features."""
    shapes[f"{name}.weight"] = (out, width)
    shapes[f"{name}.bias"] = (out,)


def conv(shapes: Shapes, name: str, out: int, width: int, kernel: int = 3) -> None:
    """Add a convolution from `width` to `out` channels."""
    shapes[f"{name}.weight"] = (out, width, kernel, kernel)
    shapes[f"{name}.bias"] = (out,)


def pointwise(shapes: Shapes, name: str, out: int, width: int) -> None:
    """Add a convolution of single pixels."""
    conv(shapes, name, out, width, kernel=1)


def under(prefix: str, shapes: Shapes) -> Shapes:
    """Return the shapes with a prefix before each name."""
    return {prefix + name: shape for name, shape in shapes.items()}
