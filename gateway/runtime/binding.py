"""Runs through ONNX Runtime's IoBinding: tensors that stay in place from run to run.

A binding holds the tensors of one set of shapes and serves one run at a time. Any number of runs may be on at once:
each takes a binding that is idle, or a new one. The answers of a run are copies, made before its binding is idle again,
so no later run writes into them.

Outputs have their place where the model's named dimensions tell their shape from those of the inputs. Strings, and
shapes that depend on values, are allocated by each run. String inputs cannot be bound from Python at all.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from gateway.protocol.datatypes import BYTES, NUMPY_DTYPES
from gateway.types import Array, Signature, TensorSpec

logger = logging.getLogger(__name__)

DType: TypeAlias = np.dtype[Any]
Shape: TypeAlias = tuple[int, ...]
Shapes: TypeAlias = tuple[Shape, ...]
"""Of the inputs, in the order of the signature."""

IDLE_BYTES = 64 * 2**20
"""Of the tensors of a session's idle bindings; the binding used last is kept whatever its size."""
BINDING_BYTES = 4096
"""What a binding takes besides its tensors, about: it bounds how many tiny ones are kept."""


class Place(NamedTuple):
    """Where tensors are bound, as ONNX Runtime names it."""

    device: str = "cpu"
    device_id: int = 0
    host: Callable[[Shape, DType], Array] = np.empty
    """Arrays in host memory that the device reads and writes at full speed."""
    is_apart: bool = False
    """The device has memory of its own: inputs are copied there before a run."""
    keeps_outputs: bool = False
    """Outputs are written there and copied back after a run, if all have a place; else the run writes to the host's."""


class _Tensor(NamedTuple):
    name: str
    dtype: DType
    extents: tuple[int | str | None, ...]
    """As the model has them: numbers and names of dimensions."""


class Binding:
    """Tensors in place for inputs of one set of shapes, and for those outputs whose shape is known from them."""

    def __init__(
        self,
        session: Any,
        place: Place,
        inputs: Sequence[tuple[_Tensor, Shape]],
        outputs: Sequence[tuple[_Tensor, Shape | None]],
    ) -> None:
        """An output without a shape is allocated by each run. Raises whatever ONNX Runtime does if memory is short."""
        self._session = session
        self._place = place
        self._binding = session.io_binding()
        self._inputs = [self._bind_input(*tensor) for tensor in inputs]
        # ONNX Runtime crashes where strings are among the outputs that it is to copy back.
        self._is_all_on_device = place.keeps_outputs and all(shape is not None for _, shape in outputs)
        self._outputs = [self._bind_output(*tensor) for tensor in outputs]
        self._is_proven = False
        """Whether outputs that have a place were seen there."""
        tensors = [(tensor, shape) for tensor, shape in (*inputs, *outputs) if shape is not None]
        self.size_bytes = BINDING_BYTES + sum(math.prod(shape) * tensor.dtype.itemsize for tensor, shape in tensors)

    def _bind_input(self, tensor: _Tensor, shape: Shape) -> tuple[str, Array, Any]:
        """Its name, its array on the host, and what lies on the device where that is not the same."""
        array = self._place.host(shape, tensor.dtype)
        if self._place.is_apart:
            value = self._allocate(tensor, shape)
            self._binding.bind_ortvalue_input(tensor.name, value)
            return tensor.name, array, value
        self._binding.bind_input(tensor.name, "cpu", 0, tensor.dtype, shape, _address(array))
        return tensor.name, array, None

    def _bind_output(self, tensor: _Tensor, shape: Shape | None) -> tuple[str, Array | None]:
        """Its name, and its array on the host if it has one."""
        if shape is None:
            self._binding.bind_output(tensor.name)
        elif self._is_all_on_device:
            self._binding.bind_ortvalue_output(tensor.name, self._allocate(tensor, shape))
        else:
            array = self._place.host(shape, tensor.dtype)
            self._binding.bind_output(tensor.name, "cpu", 0, tensor.dtype, shape, _address(array))
            return tensor.name, array
        return tensor.name, None

    def _allocate(self, tensor: _Tensor, shape: Shape) -> Any:
        # By the session's own allocator, so that its memory limit holds for this as well.
        device, device_id = self._place.device, self._place.device_id
        return self._session.create_ortvalue_from_shape_and_type(shape, tensor.dtype, device, device_id)

    def run(self, inputs: dict[str, Array], options: Any = None) -> list[Array]:
        """Copies of the outputs. The inputs must have the binding's dtypes and shapes, which is not checked."""
        for name, array, value in self._inputs:
            # In two steps, because numpy lets other threads go on while it copies, and ONNX Runtime does not.
            np.copyto(array, inputs[name])
            if value is not None:
                value.update_inplace(array)
        if self._is_all_on_device:
            self._session.run_with_iobinding(self._binding, options)
            copies: list[Array] = self._binding.copy_outputs_to_cpu()
            return copies
        for name, place in self._outputs:
            if place is None:
                # What the last run allocated would be taken for this run's place, whatever its shape.
                self._binding.bind_output(name)
        self._session.run_with_iobinding(self._binding, options)
        if not self._is_proven:
            self._prove_places()
        places = [place for _, place in self._outputs if place is not None]
        if len(places) == len(self._outputs):
            return [place.copy() for place in places]
        values = zip(self._outputs, self._binding.get_outputs(), strict=True)
        return [np.array(value.numpy() if place is None else place) for (_, place), value in values]

    def _prove_places(self) -> None:
        """Take the place from outputs that do not use it.

        Of an output that is an input or a constant of the model, ONNX Runtime gives out that tensor and writes nothing.
        """
        values = zip(self._outputs, self._binding.get_outputs(), strict=True)
        self._outputs = [
            (name, place if place is not None and _lies_in(place, value) else None) for (name, place), value in values
        ]
        self._is_proven = True


class BoundRunner:
    """Runs a session through bindings. Thread-safe.

    A run that fails is repeated by `session.run`, whose errors say whose fault it was. If that one succeeds, the fault
    was with the binding (the model does not keep to the shapes that it declares, say): the session does without from
    then on, and the log says why.
    """

    def __init__(self, session: Any, signature: Signature, place: Place, options: Any = None) -> None:
        """`signature` is the session's, without string inputs; `options` are run options for every run."""
        self.session = session
        self._place = place
        self.options = options
        self._inputs = _tensors(session.get_inputs(), signature.inputs)
        self._outputs = _tensors(session.get_outputs(), signature.outputs)
        self._output_names = [tensor.name for tensor in self._outputs]
        self.idle: OrderedDict[Shapes, list[Binding]] = OrderedDict()
        """Those used last stand last."""
        self.idle_bytes = 0
        self._lock = Lock()
        self.is_given_up = False

    @property
    def unplaced(self) -> list[str]:
        """Outputs whose shape the inputs do not tell."""
        named = {extent: 1 for tensor in self._inputs for extent in tensor.extents if isinstance(extent, str)}
        return [tensor.name for tensor in self._outputs if _shape(tensor, named) is None]

    def run(self, inputs: dict[str, Array]) -> Sequence[Array]:
        """All outputs, in the order of the signature. Raises as `session.run` does."""
        shapes = None if self.is_given_up else self.shapes_of(inputs)
        if shapes is None:
            return self._run_unbound(inputs)
        try:
            return self.run_bound(shapes, inputs)
        except Exception as error:  # ONNX Runtime's bindings raise RuntimeError for everything
            outputs = self._run_unbound(inputs)
            with self._lock:
                self.is_given_up = True
                self.idle.clear()
            logger.warning("runs go without IoBinding from now on: it failed where a plain run did not: %s", error)
            return outputs

    def run_bound(self, shapes: Shapes, inputs: dict[str, Array]) -> list[Array]:
        """A run in an idle binding, or in a new one."""
        binding = self._take(shapes) or self.bind(shapes)
        outputs = binding.run(inputs, self.options)
        self._give_back(shapes, binding)
        return outputs

    def _run_unbound(self, inputs: dict[str, Array]) -> Sequence[Array]:
        outputs: Sequence[Array] = self.session.run(self._output_names, inputs, self.options)
        return outputs

    def shapes_of(self, inputs: dict[str, Array]) -> Shapes | None:
        """None if they are not what the model takes: what is bound is copied without a look at it."""
        if len(inputs) != len(self._inputs):
            return None
        shapes = []
        for name, dtype, _ in self._inputs:
            array = inputs.get(name)
            if array is None or array.dtype != dtype:
                return None
            shapes.append(array.shape)
        return tuple(shapes)

    def bind(self, shapes: Shapes) -> Binding:
        """A new binding for inputs of these shapes."""
        named: dict[str, int] = {}
        for tensor, shape in zip(self._inputs, shapes, strict=True):
            named |= {
                name: extent for name, extent in zip(tensor.extents, shape, strict=False) if isinstance(name, str)
            }
        inputs = list(zip(self._inputs, shapes, strict=True))
        return Binding(self.session, self._place, inputs, [(tensor, _shape(tensor, named)) for tensor in self._outputs])

    def _take(self, shapes: Shapes) -> Binding | None:
        with self._lock:
            bindings = self.idle.get(shapes)
            if bindings is None:
                return None
            binding = bindings.pop()
            self.idle_bytes -= binding.size_bytes
            if not bindings:
                del self.idle[shapes]
            return binding

    def _give_back(self, shapes: Shapes, binding: Binding) -> None:
        with self._lock:
            if self.is_given_up:
                return
            self.idle.setdefault(shapes, []).append(binding)
            self.idle.move_to_end(shapes)
            self.idle_bytes += binding.size_bytes
            while self.idle_bytes > IDLE_BYTES and (len(self.idle) > 1 or len(self.idle[shapes]) > 1):
                oldest, bindings = next(iter(self.idle.items()))
                self.idle_bytes -= bindings.pop(0).size_bytes
                if not bindings:
                    del self.idle[oldest]


def unbindable(signature: Signature) -> str | None:
    """Why a model with this signature cannot be run through bindings; None if it can."""
    strings = [spec.name for spec in signature.inputs if spec.datatype == BYTES]
    return f"input {strings[0]!r} holds strings, which ONNX Runtime does not bind from Python" if strings else None


def _tensors(nodes: Sequence[Any], specs: Sequence[TensorSpec]) -> list[_Tensor]:
    return [
        _Tensor(spec.name, NUMPY_DTYPES[spec.datatype], tuple(node.shape))
        for node, spec in zip(nodes, specs, strict=True)
    ]


def _shape(tensor: _Tensor, named: dict[str, int]) -> Shape | None:
    """An output's shape; None if the dimensions of the inputs do not tell it, or if it holds strings."""
    # ONNX Runtime shows an output of unknown rank as it does a scalar.
    if tensor.dtype == object or not tensor.extents:
        return None
    shape = [named.get(extent) if isinstance(extent, str) else extent for extent in tensor.extents]
    known = tuple(extent for extent in shape if extent is not None and extent >= 0)
    return known if len(known) == len(shape) else None


def _lies_in(place: Array, value: Any) -> bool:
    return place.size == 0 or value.data_ptr() == _address(place)


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
