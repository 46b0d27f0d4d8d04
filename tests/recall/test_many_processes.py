import pytest
import torch

from recall_lightning.weights.naming import named_weights
from tests.support.processes import run_python, run_ranks
from tests.support.sharded_runs import RESUMED, RULES, Uneven

SCRIPT = "tests.support.sharded_runs"
pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run the script once for each combination of arguments; return what each rank wrote."""
    parent = tmp_path_factory.mktemp("runs")
    done = {}

    def folder_of(kind, processes, resume=(), precision=()):
        return parent / "-".join(map(str, (kind, processes, *resume, *precision)))

    def run(kind, processes=2, resume=(), launcher=(), precision=()):
        folder = folder_of(kind, processes, resume, precision)
        if folder not in done:
            arguments = [kind, processes, folder, *precision]
            if resume:
                run(*resume)
                arguments += ["--resume", folder_of(*resume)]
            if launcher:
                run_python(*launcher, "-m", SCRIPT, *arguments, folder=parent)
            else:
                run_ranks(SCRIPT, *arguments, folder=parent, processes=processes)
            done[folder] = [
                {path.stem[:-2]: torch.load(path) for path in folder.glob(f"*-{rank}.pt")}
                for rank in range(processes)
            ]
        return done[folder]

    return run


DDP_PRECISIONS = ("bf16-true", "bf16-mixed", "64-true")  # FSDP2 has no "64-true"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def assert_alike(first, second, rounding=0.0):
    """Compare weights, coefficients and drift of two runs, and their task matrices."""
    for name, weight in first["weights"].items():
        torch.testing.assert_close(second["weights"][name], weight, rtol=rounding, atol=rounding)
    for what in ("coefficients", "drift"):
        assert len(first[what]) == len(second[what]) > 0
        for own, other in zip(first[what], second[what], strict=True):
            assert other == pytest.approx(own, rel=1e-5)
    for own, other in zip(first["matrix"], second["matrix"], strict=True):
        assert own == pytest.approx(other, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("rule", RULES)
def test_processes_under_torchrun_agree_bit_for_bit(rule, run):
    first, second = (rank[rule] for rank in run("ddp", launcher=TORCHRUN))
    assert_alike(first, second)
    assert first["coefficients"] == second["coefficients"]


@pytest.mark.parametrize("rule", ["uniform", "importance", "gradients", "subspace"])
def test_what_is_not_measured_on_samples_of_a_process_is_as_with_one(rule, run):
    assert_alike(run("single", 1)[0][rule], run("ddp", launcher=TORCHRUN)[0][rule], 1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_sharded_weights_merge_as_whole_ones(rule, run):
    whole, shards = run("ddp", launcher=TORCHRUN), run("fsdp")
    for rank in range(2):
        assert_alike(whole[rank][rule], shards[rank][rule], 1e-6)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_task_that_is_rolled_back_leaves_the_weights_it_started_from(kind, run):
    torch.manual_seed(0)
    before = named_weights(Uneven())
    launcher = TORCHRUN if kind == "ddp" else ()
    for rank in run(kind, launcher=launcher):
        for name, weight in rank["rolled back"]["weights"].items():
            torch.testing.assert_close(weight, before[name], rtol=0, atol=0)


def test_a_process_copies_its_own_shard_only(run):
    whole = run("single", 1)[0]["uniform"]["snapshot"]
    parts = [rank["uniform"]["snapshot"] for rank in run("fsdp")]
    assert sum(parts) == whole
    assert max(parts) < 0.55 * whole  # seven of fifteen rows are the other's


@pytest.mark.parametrize("rule", RESUMED)
@pytest.mark.parametrize("kind", ["fsdp", "distributed"])
def test_sharded_runs_resume_exactly(kind, rule, run):
    for whole, resumed in zip(run(kind), run(kind, resume=(kind, 2)), strict=True):
        assert_alike(whole[rule], resumed[rule])


@pytest.mark.parametrize(
    ("kind", "processes", "resume"),
    [
        ("single", 1, ("fsdp", 2)),
        ("fsdp", 2, ("single", 1)),
        ("distributed", 1, ("distributed", 2)),
    ],
)
def test_another_number_of_processes_goes_on(kind, processes, resume, run):
    resumed = run(kind, processes, resume=resume)[0]
    assert_alike(run("single", 1)[0]["gradients"], resumed["gradients"], 1e-5)
    for rule in RESUMED:
        assert all(weight.isfinite().all() for weight in resumed[rule]["weights"].values())


def test_processes_wait_until_all_have_typical_samples(run):
    first, second = (rank["unequal"] for rank in run("unequal"))
    assert first == second == {"steps": [4, 5, 6, 7, 8]}


@pytest.mark.parametrize(
    ("kind", "precision"),
    [*[("ddp", p) for p in DDP_PRECISIONS], *[("fsdp", p) for p in DDP_PRECISIONS[:2]]],
)
def test_processes_agree_in_every_precision(kind, precision, run):
    first, second = run(kind, precision=("--precision", precision))
    for rule in RESUMED:
        assert_alike(first[rule], second[rule])
        assert all(weight.isfinite().all() for weight in first[rule]["weights"].values())


def test_snapshots_in_files_are_written_once_and_merge_alike(run):
    for rule in RESUMED:
        for rank in range(2):
            files, memory = run("files")[rank][rule], run("ddp", launcher=TORCHRUN)[rank][rule]
            assert_alike(files, memory)
            tasks = ["task_0", "task_1"] if rule == "two" else ["task_1"]
            assert [name.partition("-")[0] for name in files["files"]] == tasks
