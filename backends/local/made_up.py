"""Synthetic models as the engine runs one: random weights, and a vocabulary to go with them.

`synthetic:1b-cai` as the model's name. Prompts cost a token a byte; what is said are words that do
not exist. Speed and memory are those of a trained model of the shape (`backends.local.synthetic`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import tokenizers
import torch
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from backends.local.checkpoint import LoadedModel
from backends.local.errors import ModelError
from backends.local.model import Decoder
from backends.local.profile import PROFILES
from backends.local.synthetic import int8_model, synthetic_config
from backends.local.tokenizer import Tokenizer

if TYPE_CHECKING:
    from concurrent.futures import Future

    from backends.local.kernels.cpu import CpuKernels
    from backends.local.model import DeviceChoice
    from backends.local.model_config import ModelConfig

__all__ = ["made_up", "synthetic_name"]

PREFIX = "synthetic:"
SEED = 1
_NOTICE = "A synthetic model: its weights are random, and so is what it says."
_CONSONANTS, _VOWELS = "bdfghjklmnprstvz", "aeiou"


def synthetic_name(model: str) -> str | None:
    """NAME of `synthetic:NAME`; None for any other model."""
    return model.removeprefix(PREFIX) if model.startswith(PREFIX) else None


def made_up(
    name: str,
    *,
    kernels: CpuKernels | Future[CpuKernels | None] | None = None,
    device: DeviceChoice = "cpu",
    context: int = 8192,
) -> LoadedModel:
    """The model called `name`, the same each time on the same kind of device.

    Raises `UnsupportedModel` for a name that is not known, `ModelError` as `Decoder.of` does.
    """
    config = synthetic_config(name)
    decoder, made_on = _decoder(config, kernels, device, context)
    tokenizer = Tokenizer(_vocabulary(config.vocab_size), digest=f"made up, {config.vocab_size}")
    profile = PROFILES["transcript"]
    return LoadedModel(
        config=config,
        decoder=decoder,
        tokenizer=tokenizer,
        template=profile.template(tokenizer),
        profile=profile,
        # torch draws other numbers on another kind of device, and may in another version.
        fingerprint=f"{PREFIX}{name}, {SEED}, {made_on}, {torch.__version__}",
        notice=_NOTICE,
    )


def _decoder(
    config: ModelConfig,
    kernels: CpuKernels | Future[CpuKernels | None] | None,
    device: DeviceChoice,
    context: int,
) -> tuple[Decoder, str]:
    """A decoder of weights that are drawn where they are needed, and where that was."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("there is no CUDA device")
    if device != "cpu" and torch.cuda.is_available():
        try:
            model = int8_model(config, SEED, "cuda")
            return Decoder.of(model, None, device="cuda", context=context), "cuda"
        except ModelError:  # it did not pass its trial; the log says why
            if device == "cuda":
                raise
    return Decoder.of(int8_model(config, SEED), kernels, context=context), "cpu"


def _vocabulary(size: int) -> tokenizers.Tokenizer:
    """The 256 bytes, then words, each with the space before it."""
    ids = {char: at for at, char in enumerate(sorted(ByteLevel.alphabet()))}
    for at in range(len(ids), size):
        ids[f"Ġ{_word(at)}"] = at
    backend = tokenizers.Tokenizer(BPE(vocab=ids, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    return backend


def _word(number: int) -> str:
    """A word of its own for every number above 0: the digits of a number, as syllables."""
    syllables = []
    while number:
        number, digit = divmod(number, len(_CONSONANTS) * len(_VOWELS))
        consonant, vowel = divmod(digit, len(_VOWELS))
        syllables.append(_CONSONANTS[consonant] + _VOWELS[vowel])
    return "".join(syllables)
