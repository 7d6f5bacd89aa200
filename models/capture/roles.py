"""What each storage is for, and the name a user knows it by."""

from __future__ import annotations

from typing import Any

import torch

from peakline.models.capture.recorder import Recorder

__all__ = ["Roles"]


class Roles:
    """Names parameters, buffers, inputs, gradients and optimizer states for a recorder."""

    def __init__(self, recorder: Recorder) -> None:
        """Nothing has a name yet."""
        self.recorder = recorder
        self._names: dict[int, str] = {}
        self._parameters: dict[int, torch.Tensor] = {}
        self._optimizers: dict[int, torch.optim.Optimizer] = {}

    def module(self, root: torch.nn.Module, prefix: str = "") -> None:
        """Parameters and buffers, by their paths."""
        for path, parameter in root.named_parameters():
            name = f"{prefix}.{path}" if prefix else path
            if id(parameter) not in self._names:
                self._names[id(parameter)] = name
                self._parameters[id(parameter)] = parameter
            self.recorder.adopt(parameter, "parameter", name, trainable=parameter.requires_grad)
        for path, buffer in root.named_buffers():
            self.recorder.adopt(buffer, "buffer", f"{prefix}.{path}" if prefix else path)

    def inputs(self, value: Any, name: str = "input") -> None:
        """Tensors of nested inputs, named by their keys and places."""
        if isinstance(value, torch.Tensor):
            self.recorder.adopt(value, "input", name, trainable=value.requires_grad)
        elif isinstance(value, dict):
            for key, one in value.items():
                self.inputs(one, str(key) if name == "input" else f"{name}.{key}")
        elif isinstance(value, list | tuple):
            for place, one in enumerate(value):
                self.inputs(one, f"{name}.{place}")

    def updating(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to update: its parameters' gradients are there."""
        self._optimizers[id(optimizer)] = optimizer
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self._gradient(parameter)

    def step_ended(self) -> None:
        """Gradients that stay, and the states that optimizers made."""
        for parameter in list(self._parameters.values()):
            self._gradient(parameter)
        for optimizer in self._optimizers.values():
            for parameter, state in optimizer.state.items():
                for key, value in state.items():
                    if isinstance(value, torch.Tensor):
                        self.recorder.adopt(value, "optimizer_state", f"{self._name(parameter)}.{key}")

    def _gradient(self, parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            self.recorder.adopt(parameter.grad, "gradient", f"{self._name(parameter)}.grad")

    def _name(self, parameter: torch.Tensor) -> str:
        if id(parameter) not in self._names:
            self._names[id(parameter)] = f"parameter.{len(self._names)}"
            self._parameters[id(parameter)] = parameter
        name = self._names[id(parameter)]
        self.recorder.adopt(parameter, "parameter", name, trainable=True)
        return name
