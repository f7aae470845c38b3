"""Models whose matrices are held in 4 bits, by bitsandbytes, as in QLoRA."""

from importlib.util import find_spec

from transformers import BitsAndBytesConfig, PreTrainedModel

from pitlm.core.errors import InputError
from pitlm.core.recipe import Quantization


def check_quantization(quantize: Quantization | None) -> None:
    """Check that the library for this quantization is installed, before any time is spent.

    Raises:
        InputError: the library is missing.
    """
    if quantize is not None and find_spec("bitsandbytes") is None:
        raise InputError(f"peft.quantize: found {quantize}, expected bitsandbytes: pip install 'pitlm[qlora]'")


def in_four_bits(quantize: Quantization | None, dtype: str) -> dict[str, BitsAndBytesConfig]:
    """Options for loading a model, with the settings of QLoRA's paper (arXiv:2305.14314); none for whole matrices.

    Raises:
        InputError: the library is missing.
    """
    check_quantization(quantize)
    if quantize is None:
        return {}
    settings = {"bnb_4bit_quant_type": quantize, "bnb_4bit_compute_dtype": dtype}
    # The constants of each block are held in 8 bits, too.
    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True, **settings)}


def keep_gradients(model: PreTrainedModel) -> None:
    """Let the matrices compute gradients on a CPU also after an evaluation.

    Otherwise bitsandbytes packs the weights for a kernel without gradient, and training silently uses that kernel.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
