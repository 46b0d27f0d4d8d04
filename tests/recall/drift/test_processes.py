"""Changes are noticed by all processes at once, under DDP and FSDP2."""

import pytest
import torch

from tests.support.processes import run_ranks

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the script once for each strategy; return what each process wrote."""
    parent = tmp_path_factory.mktemp("drift")
    done = {}

    def run(kind, processes=2):
        if kind not in done:
            arguments = (kind, processes, parent / kind)
            run_ranks("tests.support.drift_runs", *arguments, folder=parent, processes=processes)
            ranks = range(processes)
            done[kind] = [torch.load(parent / kind / f"{rank}.pt") for rank in ranks]
        return done[kind]

    return run


def assert_alike(one, other, rounding=0.0):
    assert one["changes"] == other["changes"]
    assert len(one["changes"]) == 1
    assert len(one["coefficients"]) == len(other["coefficients"]) > 1
    for name, weight in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], weight, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_processes_notice_a_change_together_and_agree_bit_for_bit(kind, run):
    first, second = run(kind)
    assert_alike(first["whole"], second["whole"])


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_notice_what_one_does(kind, run):
    single, double = run("single", 1)[0]["whole"], run(kind)[0]["whole"]
    assert single["changes"] == double["changes"]


def test_shards_go_back_and_on_as_whole_weights_do(run):
    assert_alike(run("ddp")[0]["whole"], run("fsdp")[0]["whole"], 1e-5)


@pytest.mark.parametrize("kind", ["single", "ddp", "fsdp"])
@pytest.mark.parametrize("step", ["50", "66"])
def test_a_run_that_resumes_notices_the_same_change(kind, step, run):
    results = run(kind, 1 if kind == "single" else 2)[0]
    assert_alike(results["whole"], results[step], 0.0 if kind == "single" else 1e-5)
