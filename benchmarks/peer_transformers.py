"""transformers' continuous batching over random weights of gemma-3-270m's shape, as JSON.

A script of its own, so that its memory and its threads are gone when it ends. The last line of its
output has every conversation's seconds to the first token, and the seconds of all.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
import transformers
from transformers import ContinuousBatchingConfig, Gemma3ForCausalLM, Gemma3TextConfig
from transformers.generation import GenerationConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=int, required=True)
    parser.add_argument("--prompt", type=int, required=True)
    parser.add_argument("--reply", type=int, required=True)
    args = parser.parse_args()
    config = Gemma3TextConfig(
        vocab_size=262_144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        sliding_window=512,
        max_position_embeddings=32_768,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Gemma3ForCausalLM(config).to(torch.bfloat16).eval()
    print("parameters", sum(p.numel() for p in model.parameters()), flush=True)
    generator = torch.Generator().manual_seed(0)
    shape = (args.conversations, args.prompt)
    prompts = torch.randint(1000, config.vocab_size, shape, generator=generator).tolist()
    generation = GenerationConfig(
        max_new_tokens=args.reply, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    serve(model, prompts[:2], generation)  # compiles and warms up
    seconds, results = serve(model, prompts, generation)
    first = [r.timestamps[0] - r.created_time for r in results]
    whole = [len(r.generated_tokens) == args.reply for r in results]
    if not all(whole) or len(results) != args.conversations:
        raise SystemExit(f"only {sum(whole)} of {args.conversations} replies are whole")
    found = {
        "first_token": first,
        "seconds": seconds,
        "version": transformers.__version__,
        "attention": model.config._attn_implementation,
    }
    print(json.dumps(found))


def serve(model: Any, prompts: list[list[int]], generation: Any) -> tuple[float, list[Any]]:
    """Seconds from the first request to the last token, and the outputs."""
    outputs = model.generate_batch(
        inputs=prompts,
        generation_config=generation,
        continuous_batching_config=ContinuousBatchingConfig(),
        record_timestamps=True,
        warmup=True,
    )
    results = list(outputs.values())
    begin = min(r.created_time for r in results)
    return max(r.timestamps[-1] for r in results) - begin, results


if __name__ == "__main__":
    begin = time.perf_counter()
    main()
