"""Work that goes over tensors element by element: functions, casts, copies, fills, random numbers, reductions."""

from __future__ import annotations

from peakline.models.capture.calls import Call, View
from peakline.models.capture.target import Target
from peakline.models.capture.work.record import NOTHING, Rule, Work, as_node, built_in, like, present, read_bytes
from peakline.models.kernels import Stream

__all__ = ["RULES", "SILENT", "pass_over"]

RANDOM_WORK = 10
"""Scalar operations per random number, as in the built-in dropout (Philox, compare, scale)."""


def pass_over(call: Call, target: Target) -> Work:
    """One pass over inputs and results, one operation per element of the largest: the rule for what nobody knows."""
    tensors = [*call.views(), *call.results]
    if not tensors:
        return NOTHING
    written = call.results or (tensors[0],)
    largest = max(call.results or tensors, key=lambda view: view.elements)
    return Work((Stream(largest.elements, largest.dtype),), read_bytes(call.views()), read_bytes(written))


def _function(kind: str) -> Rule:
    """A unary function that the built-in operators have; in place, the operand is read and written."""

    def rule(call: Call, target: Target) -> Work:
        inputs = [like(view) for view in call.views()]
        return built_in(as_node(kind, inputs, [like(call.results[0])]))

    return rule


def _gelu(call: Call, target: Target) -> Work:
    tanh = call.arguments.get("approximate") == "tanh"
    return _function("gelu_tanh" if tanh else "gelu")(call, target)


def _each(work: int, launches: int = 1) -> Rule:
    """`work` operations per element of the result."""

    def rule(call: Call, target: Target) -> Work:
        y = call.results[0]
        return Work((Stream(work * y.elements, y.dtype, launches),), read_bytes(call.views()), read_bytes(call.results))

    return rule


def _gradient(call: Call, target: Target) -> Work:
    """The gradient of an elementwise function, from what it saved."""
    inputs = [like(view) for view in call.views()]
    return built_in(as_node("elementwise_backward", inputs, map(like, call.results)))


def _reduce(call: Call, target: Target) -> Work:
    """One operation per element read."""
    x = next(call.views())
    return Work((Stream(x.elements, x.dtype),), read_bytes(call.views()), read_bytes(call.results))


def _spread(call: Call, target: Target) -> Work:
    """Mean and deviation: about four operations per element (Welford)."""
    x = next(call.views())
    return Work((Stream(4 * x.elements, x.dtype),), x.bytes, read_bytes(call.results))


def _copy(call: Call, target: Target) -> Work:
    """Writes one tensor from another, converting on the way."""
    a = call.arguments
    destination, source = a["self"], a.get("src")
    if not isinstance(source, View):
        return pass_over(call, target)
    return Work((Stream(destination.elements, destination.dtype),), source.bytes, destination.bytes)


def _fill(work: int) -> Rule:
    """Writes a tensor that it need not read."""

    def rule(call: Call, target: Target) -> Work:
        y = (call.results or tuple(present(call.arguments.get("self"))))[0]
        return Work((Stream(work * y.elements, y.dtype),), 0, y.bytes)

    return rule


def _nothing(call: Call, target: Target) -> Work:
    return NOTHING


_FUNCTIONS = {
    "relu": "relu", "sigmoid": "sigmoid", "tanh": "tanh", "exp": "exp", "rsqrt": "rsqrt", "silu": "silu",
    "hardswish": "hardswish", "hardsigmoid": "hardsigmoid", "softplus": "softplus", "pow": "pow", "sin": "sin",
    "cos": "cos", "neg": "neg", "leaky_relu": "leaky_relu", "hardtanh": "relu6",
}  # fmt: skip

_GRADIENTS = (
    "threshold_backward", "sigmoid_backward", "tanh_backward", "gelu_backward", "silu_backward", "hardswish_backward",
    "hardsigmoid_backward", "softplus_backward", "leaky_relu_backward", "hardtanh_backward", "elu_backward",
    "mse_loss_backward", "smooth_l1_loss_backward", "huber_loss_backward", "binary_cross_entropy_backward",
    "native_dropout_backward", "mish_backward", "log_sigmoid_backward", "glu_backward", "_prelu_kernel_backward",
)  # fmt: skip

_COSTS = {
    "sqrt": 2, "reciprocal": 2, "log": 4, "log2": 4, "log10": 4, "log1p": 4, "expm1": 4, "erf": 6, "erfinv": 8,
    "sinh": 6, "cosh": 6, "tan": 6, "asin": 6, "acos": 6, "atan": 6, "atan2": 8, "elu": 5, "mish": 8, "glu": 5,
    "log_sigmoid_forward": 6, "exp2": 4, "lerp": 3, "addcmul": 3, "addcdiv": 4, "polar": 8, "logit": 6, "xlogy": 5,
    "sigmoid_": 4, "i0": 10, "digamma": 20, "lgamma": 20,
}  # fmt: skip

_REDUCTIONS = (
    "sum", "mean", "amax", "amin", "max", "min", "prod", "any", "all", "argmax", "argmin", "nansum", "norm",
    "linalg_vector_norm", "count_nonzero", "aminmax", "logsumexp", "equal", "is_nonzero",
)  # fmt: skip

_FILLS = (
    "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "zero_",
    "zero", "fill_", "arange", "linspace", "logspace", "eye", "scalar_tensor", "tril_indices", "triu_indices",
)  # fmt: skip

_RANDOM = (
    "uniform_", "normal_", "bernoulli_", "exponential_", "random_", "geometric_", "cauchy_", "log_normal_", "rand",
    "randn", "rand_like", "randn_like", "randint", "randint_like", "randperm", "bernoulli", "normal",
)  # fmt: skip

_PLAIN = (
    "add", "sub", "rsub", "mul", "div", "floor_divide", "remainder", "fmod", "maximum", "minimum", "clamp", "clamp_min",
    "clamp_max", "abs", "sign", "floor", "ceil", "round", "trunc", "frac", "eq", "ne", "lt", "le", "gt", "ge", "where",
    "logical_and", "logical_or", "logical_not", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_not",
    "bitwise_xor", "isnan", "isinf", "isfinite", "masked_fill", "_to_copy", "clone", "contiguous", "repeat", "roll",
    "flip", "heaviside", "sgn", "square", "nan_to_num", "copy", "bucketize", "searchsorted", "isin", "histc", "conj",
    "__and__", "__or__", "__xor__", "__lshift__", "__rshift__", "complex", "relu6", "threshold", "repeat_interleave",
)  # fmt: skip
"""One operation per element of the result, inputs read once."""

SILENT = frozenset(
    f"aten.{name}"
    for name in (
        "view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "split", "split_with_sizes",
        "chunk", "unbind", "squeeze", "unsqueeze", "detach", "detach_", "alias", "as_strided", "unfold", "diagonal",
        "narrow", "movedim", "view_as_real", "view_as_complex", "real", "imag", "lift_fresh", "lift", "_reshape_alias",
        "reshape", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_", "t_",
        "transpose_", "squeeze_", "unsqueeze_", "as_strided_", "_local_scalar_dense", "item", "sym_size",
        "sym_stride", "sym_numel", "sym_storage_offset", "is_contiguous", "is_same_size", "_conj", "_neg_view",
        "_nested_view_from_buffer", "record_stream", "is_pinned", "swapaxes", "swapdims", "view_as", "expand_as",
        "hsplit", "vsplit", "dsplit", "tensor_split", "mT", "mH", "adjoint", "numpy_T", "_version",
        "empty_permuted", "rename", "refine_names", "align_to", "_assert_async", "_has_compatible_shallow_copy_type",
    )
)  # fmt: skip
"""Views, allocations and questions: no kernel starts."""

RULES: dict[str, Rule] = {
    **{f"aten.{name}": _function(kind) for name, kind in _FUNCTIONS.items()},
    **{f"aten.{name}_": _function(kind) for name, kind in _FUNCTIONS.items()},
    "aten.gelu": _gelu,
    "aten.gelu_": _gelu,
    "aten.native_dropout": lambda call, target: built_in(
        as_node("dropout", [like(call.arguments["input"])], map(like, call.results))
    ),
    **{f"aten.{name}": _gradient for name in _GRADIENTS},
    **{f"aten.{name}": _each(work) for name, work in _COSTS.items()},
    **{f"aten.{name}_": _each(work) for name, work in _COSTS.items()},
    **{f"aten.{name}": _reduce for name in _REDUCTIONS},
    "aten.var": _spread, "aten.std": _spread, "aten.var_mean": _spread, "aten.std_mean": _spread,
    **{f"aten.{name}": pass_over for name in _PLAIN},
    **{f"aten.{name}_": pass_over for name in _PLAIN},
    "aten.copy_": _copy,
    **{f"aten.{name}": _fill(1) for name in _FILLS},
    **{f"aten.{name}": _fill(RANDOM_WORK) for name in _RANDOM},
    **dict.fromkeys(SILENT, _nothing),
}  # fmt: skip
