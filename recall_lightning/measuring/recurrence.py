"""Recurrent layers whose weights are multiplied one by one, where PyTorch runs one kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

State = tuple[Tensor, ...]  # hidden, and the cell of an LSTM
Step = Callable[[Tensor, Tensor, State], State]
"""From W_ih x + b_ih, W_hh h + b_hh and the state to the next one."""


class RecurrenceApart(TorchFunctionMode):
    """Has recurrent layers multiply their weights step by step, inside its ``with`` block.

    ``nn.LSTM``, ``nn.GRU``, ``nn.RNN`` and their cells then compute the same by
    :func:`torch.nn.functional.linear`, for inputs at once and for the hidden state at each step.

    Example:
        >>> from torch import nn
        >>> layer, x = nn.GRU(3, 4, bidirectional=True), torch.randn(5, 2, 3)
        >>> with RecurrenceApart():
        ...     outputs, last = layer(x)
        >>> bool((outputs - layer(x)[0]).abs().max() < 1e-5)
        True
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if kwargs or (func not in _LAYERS and func not in _CELLS):
            return func(*args, **(kwargs or {}))
        if func in _CELLS:
            given, state, w_ih, w_hh, b_ih, b_hh = args
            before = tuple(state) if func is torch.lstm_cell else (state,)
            x = functional.linear(given, w_ih, b_ih)
            after = _CELLS[func](x, functional.linear(before[0], w_hh, b_hh), before)
            return after if func is torch.lstm_cell else after[0]
        if isinstance(args[3], tuple | list):  # a packed sequence
            data, sizes, *others = args
            return _run(_LAYERS[func], data, sizes.tolist(), None, *others)
        given, *others, batch_first = args
        axis = 1 if batch_first else 0
        sizes = [given.shape[1 - axis]] * given.shape[axis]
        return _run(_LAYERS[func], given, sizes, axis, *others)


def _run(
    step: Step,
    given: Tensor,
    sizes: Sequence[int],
    axis: int | None,
    initial: Tensor | Sequence[Tensor],
    weights: Sequence[Tensor],
    has_bias: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
) -> tuple[Tensor, ...]:
    """Compute all layers and directions.

    Args:
        step: What a step does.
        given: The inputs, with an axis of steps; or one step's after the other's.
        sizes: How many sequences go on at each step, which become no more.
        axis: That of steps, if there is one.
        initial: The first states, (layers · directions, sequences, width) each.
        weights: W_ih, W_hh, their biases and an LSTM's W_hr, of each layer and direction.
        has_bias: Whether there are those biases.
        num_layers: As of the layer, like the next three.
        dropout: Between layers.
        training: Whether there is dropout.
        bidirectional: Whether there are two directions.
    """
    states = tuple(initial) if step is _lstm else (initial,)
    directions = 2 if bidirectional else 1
    each = len(weights) // (num_layers * directions)
    last: list[State] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            index = layer * directions + direction
            own = [*weights[index * each : (index + 1) * each]]
            w_ih, w_hh = own[:2]
            b_ih, b_hh = own[2:4] if has_bias else (None, None)
            w_hr = own[-1] if each % 2 else None
            projected = functional.linear(given, w_ih, b_ih)
            parts = projected.split(sizes) if axis is None else projected.unbind(axis)
            state = tuple(one[index] for one in states)
            seen = []
            order = range(len(parts)) if direction == 0 else reversed(range(len(parts)))
            for t in order:
                going = tuple(one[: sizes[t]] for one in state)
                new = step(parts[t], functional.linear(going[0], w_hh, b_hh), going)
                if w_hr is not None:
                    new = (functional.linear(new[0], w_hr), *new[1:])
                seen.append(new[0])
                state = tuple(
                    torch.cat([one, before[sizes[t] :]])
                    for one, before in zip(new, state, strict=True)
                )
            last.append(state)
            seen = seen if direction == 0 else seen[::-1]
            outputs.append(torch.cat(seen) if axis is None else torch.stack(seen, axis))
        given = torch.cat(outputs, -1)
        if layer < num_layers - 1:
            given = functional.dropout(given, dropout, training)
    return given, *(torch.stack(parts) for parts in zip(*last, strict=True))


def _lstm(x: Tensor, h: Tensor, state: State) -> State:
    enters, stays, new, leaves = (x + h).chunk(4, -1)
    cell = stays.sigmoid() * state[1] + enters.sigmoid() * new.tanh()
    return leaves.sigmoid() * cell.tanh(), cell


def _gru(x: Tensor, h: Tensor, state: State) -> State:
    (reset, update, new), (h_reset, h_update, h_new) = x.chunk(3, -1), h.chunk(3, -1)
    candidate = (new + (reset + h_reset).sigmoid() * h_new).tanh()
    kept = (update + h_update).sigmoid()
    return ((1 - kept) * candidate + kept * state[0],)


def _tanh(x: Tensor, h: Tensor, state: State) -> State:
    return ((x + h).tanh(),)


def _relu(x: Tensor, h: Tensor, state: State) -> State:
    return ((x + h).relu(),)


_LAYERS: dict[Any, Step] = {
    torch.lstm: _lstm,
    torch.gru: _gru,
    torch.rnn_tanh: _tanh,
    torch.rnn_relu: _relu,
}
_CELLS: dict[Any, Step] = {
    torch.lstm_cell: _lstm,
    torch.gru_cell: _gru,
    torch.rnn_tanh_cell: _tanh,
    torch.rnn_relu_cell: _relu,
}
