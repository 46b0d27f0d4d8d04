"""LoRA under DDP and FSDP2, on two processes."""

import pytest
import torch

from tests.support.adapter_runs import RUNS
from tests.support.processes import run_ranks

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the script once for each strategy; return what each process wrote."""
    parent = tmp_path_factory.mktemp("adapters")
    done = {}

    def run(kind, processes=2):
        if kind not in done:
            arguments = (kind, processes, parent / kind)
            run_ranks("tests.support.adapter_runs", *arguments, folder=parent, processes=processes)
            done[kind] = [
                {name: torch.load(parent / kind / f"{name}-{rank}.pt") for name in RUNS}
                for rank in range(processes)
            ]
        return done[kind]

    return run


def assert_alike(one, other, rounding=0.0):
    """Compare adapters, bases at each task's end, and coefficients, of which there are some."""
    assert len(one["coefficients"]) == len(other["coefficients"]) == 4
    for own, others in zip(one["coefficients"], other["coefficients"], strict=True):
        assert others == pytest.approx(own, rel=1e-5)
    for name, weight in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], weight, rtol=rounding, atol=rounding)
    for own, others in zip(one["bases"], other["bases"], strict=True):
        torch.testing.assert_close(others, own, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_processes_agree_on_an_adapter_bit_for_bit(kind, name, run):
    assert_alike(*(rank[name] for rank in run(kind)))


@pytest.mark.parametrize("name", ["uniform", "gradients"])
def test_what_is_not_measured_on_a_process_alone_is_as_with_one(name, run):
    assert_alike(run("single", 1)[0][name], run("ddp")[0][name], 1e-5)


@pytest.mark.parametrize("name", [name for name in RUNS if name != "fresh"])
def test_a_sharded_adapter_merges_as_a_whole_one(name, run):
    assert_alike(run("ddp")[0][name], run("fsdp")[0][name], 1e-6)


def test_an_adapter_is_added_to_its_base_alike_sharded_or_whole(run):
    """The next one starts from other random numbers."""
    single, *others = (run(k, p)[0]["fresh"] for k, p in [("single", 1), ("ddp", 2), ("fsdp", 2)])
    assert not torch.equal(*single["bases"])
    for other in others:
        torch.testing.assert_close(other["bases"][0], single["bases"][0], rtol=1e-5, atol=1e-6)
