"""Optimizers of the user's own, with weights of their own and without."""

import torch
from torch import nn
from torch.optim import SGD, Optimizer


class Masters(Optimizer):
    """Steps copies in float32, and writes them into the weights."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    own = self.state[p].setdefault("master", p.detach().float().clone())
                    own -= group["lr"] * p.grad
                    p.copy_(own)
        return loss


class HalfMasters(Masters):
    """Keeps copies of weights in half precision alone."""

    def step(self, closure=None):
        if self.param_groups[0]["params"][0].dtype is torch.bfloat16:
            return super().step(closure)
        return SGD.step(self, closure)


class ScheduleFree(Optimizer):
    """Schedule-free SGD (arXiv 2405.15682): weights are between the steps' end and their mean."""

    def __init__(self, params, lr=0.1, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0, "training": False})

    def train(self):
        for group in self.param_groups:
            group["training"] = True

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            assert group["training"]
            group["k"] += 1
            share = 1 / group["k"]
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.detach().clone())
                p.lerp_(z, share)
                p.sub_(p.grad, alpha=group["lr"] * (1 - group["beta"] * (1 - share)))
                z.sub_(p.grad, alpha=group["lr"])
        return loss


class Lookahead(Optimizer):
    """Goes back half of the way to slow weights every few steps (arXiv 1907.08610)."""

    def __init__(self, base_optimizer, every=5):
        self.optimizer, self.every, self.count = base_optimizer, every, 0
        self.param_groups, self.defaults = base_optimizer.param_groups, base_optimizer.defaults
        self.slow = [[p.detach().clone() for p in g["params"]] for g in self.param_groups]
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}

    @property
    def state(self):
        return self.optimizer.state

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = self.optimizer.step(closure)
        self.count += 1
        if self.count % self.every == 0:
            for group, slow in zip(self.param_groups, self.slow, strict=True):
                for p, own in zip(group["params"], slow, strict=True):
                    own.lerp_(p, 0.5)
                    p.copy_(own)
        return loss


class StateLookahead(SGD):
    """The same with its slow weights in the state, seldom."""

    def __init__(self, params, lr=0.1, every=50):
        super().__init__(params, lr=lr)
        self.every, self.count = every, 0

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p].setdefault("slow", p.detach().clone())
        loss = super().step(closure)
        self.count += 1
        if self.count % self.every == 0:
            for p in self.param_groups[0]["params"]:
                self.state[p]["slow"].lerp_(p, 0.5)
                p.copy_(self.state[p]["slow"])
        return loss


class Wrapped(Optimizer):
    """Steps float32 copies with another optimizer, as mixed-precision wrappers do."""

    def __init__(self, params, kind, **kwargs):
        super().__init__(params, {})
        self.masters = [
            nn.Parameter(p.detach().float().clone()) for p in self.param_groups[0]["params"]
        ]
        self.inner = kind(self.masters, **kwargs)

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure() if closure else None
        for p, master in zip(self.param_groups[0]["params"], self.masters, strict=True):
            master.grad = p.grad.float()
        self.inner.step()
        for p, master in zip(self.param_groups[0]["params"], self.masters, strict=True):
            p.copy_(master)
        return loss


class SharpnessAware(Optimizer):
    """Steps by the gradient uphill of the weights, which it keeps meanwhile: SAM."""

    def __init__(self, params, base_optimizer=SGD, rho=0.05, **kwargs):
        super().__init__(params, {"rho": rho, **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None
        closure = torch.enable_grad()(closure)
        loss = closure()
        for p in self.param_groups[0]["params"]:
            self.state[p]["old_p"] = p.detach().clone()
            p.add_(p.grad, alpha=self.defaults["rho"])
        closure()
        for p in self.param_groups[0]["params"]:
            p.copy_(self.state[p]["old_p"])
        self.base_optimizer.step()
        return loss


class Averaging(SGD):
    """Keeps a mean of its weights for whoever wants it, and the last weights."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for p in self.param_groups[0]["params"]:
            self.state[p].setdefault("mean", p.detach().clone()).lerp_(p, 0.1)
            self.state[p]["last"] = p.detach().clone()
        return loss


class Proximal(Optimizer):
    """Pulls a little towards where it started, which it keeps."""

    def __init__(self, params, lr=0.1, pull=0.01):
        super().__init__(params, {"lr": lr, "pull": pull})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for p in group["params"]:
                start = self.state[p].setdefault("start", p.detach().clone())
                p.sub_(p.grad + group["pull"] * (p - start), alpha=group["lr"])
        return loss
