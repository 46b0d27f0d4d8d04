import multiprocessing

import torch
import torch.distributed

from recall_lightning.weights.sharding import of_all_processes, of_this_process


def of_two(rank, folder, results):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    found = of_all_processes({"batch": torch.tensor([rank]), "step": [rank]})
    results.put((rank, [each["batch"].item() for each in found], of_this_process(found)["step"]))
    torch.distributed.destroy_process_group()


def test_the_first_process_gets_what_all_have_and_each_finds_its_own(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = [context.Process(target=of_two, args=(rank, tmp_path, results)) for rank in (0, 1)]
    for process in processes:
        process.start()
    found = {rank: (batches, own) for rank, batches, own in (results.get() for _ in processes)}
    for process in processes:
        process.join()
    assert found == {0: ([0, 1], [0]), 1: ([1, 1], [1])}
