"""The names of a module's weights."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from recall_lightning.weights.sharding import local

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module")  # not "module": people call children that


def canonical_name(name: str) -> str:
    """Remove what wrappers such as ``torch.compile`` add to a module's or parameter's name.

    >>> canonical_name("model._orig_mod.layers.0.weight")
    'model.layers.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def named_submodules(module: nn.Module) -> dict[str, nn.Module]:
    """Name a module's submodules, itself ("") among them, a shared one once.

    >>> list(named_submodules(nn.Sequential(nn.Tanh())))
    ['', '0']
    """
    return {canonical_name(name): child for name, child in module.named_modules()}


def memory_of(tensor: Tensor) -> object:
    """Identify the memory that a tensor's elements lie in; that of a DTensor's own shard.

    >>> import torch
    >>> weight = torch.zeros(2, 3)
    >>> memory_of(weight) == memory_of(weight.T), memory_of(weight) == memory_of(weight[:1])
    (True, False)
    """
    shard = local(tensor)
    start = shard.data_ptr() if shard.device.type != "meta" else 0
    return (shard.device, start, shard.numel()) if start else id(tensor)


def named_weights(module: nn.Module) -> dict[str, Tensor]:
    """Name the tensors that a snapshot holds and a merge writes.

    These are the trainable floating-point parameters, a tied one once, and the running mean and
    variance of normalisation layers, which describe the activations that those parameters make.
    Frozen parameters cannot drift and are left out. Tied are also two parameters of one memory,
    such as a weight and its transpose.

    Args:
        module: Any module; names are free of wrapper prefixes.

    Returns:
        Canonical name to the live tensor itself (not a copy), in registration order.

    Example:
        >>> list(named_weights(nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))))
        ['0.weight', '1.weight', '1.bias', '1.running_mean', '1.running_var']
    """
    weights: dict[str, Tensor] = {}
    seen: set[object] = set()
    for module_name, child in module.named_modules():
        tensors: list[tuple[str, Tensor | None]] = [
            (name, parameter)
            for name, parameter in child.named_parameters(recurse=False)
            if parameter.requires_grad
        ]
        if isinstance(child, _NormBase):
            tensors += [("running_mean", child.running_mean), ("running_var", child.running_var)]
        for name, tensor in tensors:
            if tensor is None or not tensor.is_floating_point() or memory_of(tensor) in seen:
                continue
            seen.add(memory_of(tensor))
            weights[canonical_name(f"{module_name}.{name}".lstrip("."))] = tensor
    return weights


def lazy_weights(module: nn.Module) -> list[str]:
    """Return the names of parameters and buffers whose shape only a first batch will tell.

    >>> lazy_weights(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2)))
    ['1.weight', '1.bias']
    """
    named = [*module.named_parameters(), *module.named_buffers()]
    return [canonical_name(name) for name, tensor in named if is_lazy(tensor)]


def complex_weights(module: nn.Module) -> list[str]:
    """Name the trainable parameters of complex numbers, which :func:`named_weights` leaves out.

    Example:
        >>> import torch
        >>> complex_weights(nn.Linear(2, 2, bias=False, dtype=torch.complex64))
        ['weight']
    """
    named = module.named_parameters()
    return [canonical_name(n) for n, p in named if p.requires_grad and p.is_complex()]


def find_weights(module: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Find what names of :func:`named_weights` mean now, trainable or not.

    Args:
        module: The module that had these weights.
        names: Their names then.

    Returns:
        Name to the live tensor, in the order of ``names``; those that are gone are missing.

    Example:
        >>> layer = nn.Linear(2, 2).requires_grad_(False)
        >>> list(find_weights(layer, ["bias", "scale"]))
        ['bias']
    """
    tensors: dict[str, Tensor] = {}
    for module_name, child in module.named_modules(remove_duplicate=False):
        own: dict[str, Tensor | None] = dict(child.named_parameters(recurse=False))
        if isinstance(child, _NormBase):
            own |= {"running_mean": child.running_mean, "running_var": child.running_var}
        for name, tensor in own.items():
            if tensor is not None:
                tensors.setdefault(canonical_name(f"{module_name}.{name}".lstrip(".")), tensor)
    return {name: tensors[name] for name in names if name in tensors}


def running_statistics(module: nn.Module) -> set[str]:
    """Name the running means and variances among a module's weights.

    Example:
        >>> sorted(running_statistics(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))))
        ['1.running_mean', '1.running_var']
    """
    return {
        canonical_name(f"{name}.{buffer}".lstrip("."))
        for name, child in module.named_modules()
        if isinstance(child, _NormBase)
        for buffer in ("running_mean", "running_var")
    }
