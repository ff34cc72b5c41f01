"""The names that a model's pickle may refer to. Every other name is refused.

A pickle names a class or function as (module, name). The reader never imports them. It interprets
some of the permitted names, and ignores objects of the other permitted names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sd_loader.tensors import Dtype


@dataclass(frozen=True, slots=True)
class Name:
    """The name of a class or function in a pickle. It is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def _names(module: str, names: str) -> Iterator[Name]:
    return (Name(module, name) for name in names.split())


REBUILD_TENSOR = Name("torch._utils", "_rebuild_tensor")
REBUILD_TENSOR_V2 = Name("torch._utils", "_rebuild_tensor_v2")
REBUILD_TENSOR_V3 = Name("torch._utils", "_rebuild_tensor_v3")
REBUILD_FROM_TYPE = Name("torch._tensor", "_rebuild_from_type_v2")
REBUILD_PARAMETER = frozenset(
    _names("torch._utils", "_rebuild_parameter _rebuild_parameter_with_state")
)
SIZE = Name("torch", "Size")

DEFAULT_DICTIONARY = Name("collections", "defaultdict")
DICTIONARIES = frozenset(
    {
        DEFAULT_DICTIONARY,
        Name("collections", "OrderedDict"),
        Name("builtins", "dict"),
        Name("__builtin__", "dict"),
    }
)

# Early programs stored the vectors of textual inversion in it.
PARAMETER_DICTIONARY = Name("torch.nn.modules.container", "ParameterDict")

STORAGES = {
    Name("torch", "DoubleStorage"): Dtype.F64,
    Name("torch", "FloatStorage"): Dtype.F32,
    Name("torch", "HalfStorage"): Dtype.F16,
    Name("torch", "BFloat16Storage"): Dtype.BF16,
    Name("torch", "LongStorage"): Dtype.I64,
    Name("torch", "IntStorage"): Dtype.I32,
    Name("torch", "ShortStorage"): Dtype.I16,
    Name("torch", "CharStorage"): Dtype.I8,
    Name("torch", "ByteStorage"): Dtype.U8,
    Name("torch", "BoolStorage"): Dtype.BOOL,
    Name("torch", "UntypedStorage"): Dtype.U8,
    Name("torch.storage", "UntypedStorage"): Dtype.U8,
}

DTYPES = {
    Name("torch", "float64"): Dtype.F64,
    Name("torch", "float32"): Dtype.F32,
    Name("torch", "float16"): Dtype.F16,
    Name("torch", "bfloat16"): Dtype.BF16,
    Name("torch", "float8_e5m2"): Dtype.F8_E5M2,
    Name("torch", "float8_e4m3fn"): Dtype.F8_E4M3,
    Name("torch", "int64"): Dtype.I64,
    Name("torch", "int32"): Dtype.I32,
    Name("torch", "int16"): Dtype.I16,
    Name("torch", "int8"): Dtype.I8,
    Name("torch", "uint64"): Dtype.U64,
    Name("torch", "uint32"): Dtype.U32,
    Name("torch", "uint16"): Dtype.U16,
    Name("torch", "uint8"): Dtype.U8,
    Name("torch", "bool"): Dtype.BOOL,
}

UNSUPPORTED = frozenset(
    {
        *_names(
            "torch._utils",
            "_rebuild_sparse_tensor _rebuild_sparse_csr_tensor _rebuild_qtensor"
            " _rebuild_meta_tensor_no_storage _rebuild_nested_tensor _rebuild_wrapper_subclass"
            " _rebuild_device_tensor_from_numpy _rebuild_device_tensor_from_cpu_tensor"
            " _rebuild_xla_tensor",
        ),
        *_names(
            "torch",
            "ComplexFloatStorage ComplexDoubleStorage QInt8Storage QUInt8Storage QInt32Storage"
            " QUInt4x2Storage QUInt2x4Storage",
        ),
    }
)
"""Kinds of tensors that Stable Diffusion models do not have. Harmless, but not supported."""

_CALLBACKS = (
    "model_checkpoint ModelCheckpoint",
    "early_stopping EarlyStopping",
    "lr_monitor LearningRateMonitor",
    "gradient_accumulation_scheduler GradientAccumulationScheduler",
    "timer Timer",
    "progress ProgressBar",
    "progress.base ProgressBarBase",
    "progress.progress ProgressBar",
    "progress.tqdm_progress TQDMProgressBar",
)

INERT = frozenset(
    {
        *_names(
            "builtins",
            "object list tuple set frozenset int float complex bool str bytes bytearray"
            " slice range",
        ),
        *_names(
            "__builtin__",
            "object list tuple set frozenset int long float complex bool str unicode bytearray"
            " slice xrange",
        ),
        *_names("collections", "Counter deque"),
        *_names("copyreg", "_reconstructor"),
        *_names("copy_reg", "_reconstructor"),
        *_names("_codecs", "encode"),
        *_names("typing", "Any"),
        *_names("argparse", "Namespace"),
        *_names("datetime", "date datetime time timedelta timezone"),
        *_names("pathlib", "Path PosixPath WindowsPath PurePosixPath PureWindowsPath"),
        *_names("pathlib._local", "Path PosixPath WindowsPath PurePosixPath PureWindowsPath"),
        *_names("numpy", "dtype ndarray"),
        *_names("numpy.core.multiarray", "_reconstruct scalar"),
        *_names("numpy._core.multiarray", "_reconstruct scalar"),
        *_names("numpy.core.numeric", "_frombuffer"),
        *_names("numpy._core.numeric", "_frombuffer"),
        *_names("torch", "Tensor device Generator strided complex32 complex64 complex128"),
        *_names("torch.torch_version", "TorchVersion"),
        *_names("torch.nn.parameter", "Parameter Buffer"),
        *_names("torch.serialization", "_get_layout"),
        *_names("omegaconf.base", "ContainerMetadata Metadata"),
        *_names("omegaconf.dictconfig", "DictConfig"),
        *_names("omegaconf.listconfig", "ListConfig"),
        *_names(
            "omegaconf.nodes",
            "AnyNode BooleanNode BytesNode EnumNode FloatNode IntegerNode PathNode StringNode",
        ),
        *_names("diffusers.configuration_utils", "FrozenDict"),
        *_names("pytorch_lightning.utilities.parsing", "AttributeDict"),
        *_names("lightning_fabric.utilities.data", "AttributeDict"),
        *_names("lightning.fabric.utilities.data", "AttributeDict"),
        *(
            Name(f"{package}.callbacks.{module}", name)
            for package in ("pytorch_lightning", "lightning.pytorch")
            for module, name in (entry.split() for entry in _CALLBACKS)
        ),
    }
)
"""Classes of objects that training programs store beside the weights. These are ignored."""

PERMITTED = {
    (name.module, name.name): name
    for name in (
        frozenset({REBUILD_TENSOR, REBUILD_TENSOR_V2, REBUILD_TENSOR_V3, REBUILD_FROM_TYPE, SIZE})
        | {PARAMETER_DICTIONARY}
        | REBUILD_PARAMETER
        | DICTIONARIES
        | STORAGES.keys()
        | DTYPES.keys()
        | UNSUPPORTED
        | INERT
    )
}
