"""transformers in float32 on this CPU: a program of its own, printing JSON.

See `benchmarks/engine.py`. It imports nothing of ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, float]:
    """Tokens per second: prefill, one stream and many."""
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    vocab = model.config.vocab_size
    torch.manual_seed(0)
    prompt = torch.randint(100, vocab - 100, (1, args.prefill))
    rates = []
    for _ in range(args.repeats):
        began = time.perf_counter()
        model(prompt, use_cache=True, logits_to_keep=1).logits.argmax(-1)
        rates.append(args.prefill / (time.perf_counter() - began))
    result = {"prefill": statistics.median(rates)}
    for streams, key in ((1, "decode_b1"), (args.streams, "decode_b16")):
        first = model(prompt[:, : args.context], use_cache=True, logits_to_keep=1)
        cache, now = first.past_key_values, first.logits.argmax(-1)
        cache.batch_repeat_interleave(streams)
        now = now.repeat(streams, 1)  # [streams, 1]
        rates = []
        for _ in range(args.repeats):
            began = time.perf_counter()
            for _ in range(args.steps):
                out = model(now, past_key_values=cache, use_cache=True, logits_to_keep=1)
                now = out.logits.argmax(-1)
            rates.append(streams * args.steps / (time.perf_counter() - began))
        result[key] = statistics.median(rates)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a folder as transformers reads it")
    parser.add_argument("--work", type=Path, help="not needed")
    for name in ("threads", "prefill", "context", "streams", "steps", "repeats"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps({"float32": measure(args)}))


if __name__ == "__main__":
    main()
