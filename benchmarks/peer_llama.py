"""llama.cpp driven through its low-level `llama_decode`: a program of its own, printing JSON.

Runs under any Python that has llama-cpp-python (`python -m benchmarks engine` starts it), so it
imports nothing of ours. Greedy tokens are taken by NumPy from the logits in place.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import statistics
import time
from pathlib import Path

import numpy as np

llama = importlib.import_module("llama_cpp")  # not among our own dependencies

QUANTISED = {"q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0, "q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0}


def requantise(source: Path, kind: str, folder: Path) -> Path:
    """The model in another quantisation, made once."""
    target = folder / f"{source.stem}.{kind}.gguf"
    if not target.is_file():
        parameters = llama.llama_model_quantize_default_params()
        parameters.ftype = QUANTISED[kind]
        parameters.allow_requantize = True
        parameters.nthread = 2
        partial = target.with_suffix(".partial")
        if llama.llama_model_quantize(
            str(source).encode(), str(partial).encode(), ctypes.byref(parameters)
        ):
            raise RuntimeError(f"cannot quantise {source} to {kind}")
        partial.replace(target)
    return target


class Peer:
    """One model and one context of many sequences."""

    def __init__(self, path: Path, threads: int, sequences: int, context: int) -> None:
        model_parameters = llama.llama_model_default_params()
        self.model = llama.llama_load_model_from_file(str(path).encode(), model_parameters)
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = sequences * context
        parameters.n_seq_max = sequences
        parameters.n_batch = parameters.n_ubatch = 512
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama.llama_new_context_with_model(self.model, parameters)
        self.vocab = llama.llama_n_vocab(llama.llama_model_get_vocab(self.model))
        self.batch = llama.llama_batch_init(512, 0, 1)

    def decode(self, tokens: list[tuple[int, int, int, bool]]) -> None:
        """Runs (token, position, sequence, wants logits)."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = wanted
        if llama.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")

    def best(self, row: int) -> int:
        """The likeliest token of a row of the last batch."""
        logits = llama.llama_get_logits_ith(self.context, row)
        return int(np.ctypeslib.as_array(logits, (self.vocab,)).argmax())

    def forget(self) -> None:
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)

    def prefill(self, ids: list[int], sequence: int) -> None:
        for at in range(0, len(ids), 512):
            piece = ids[at : at + 512]
            last = at + len(piece) == len(ids)
            self.decode(
                [
                    (token, at + i, sequence, last and i == len(piece) - 1)
                    for i, token in enumerate(piece)
                ]
            )

    def close(self) -> None:
        llama.llama_batch_free(self.batch)
        llama.llama_free(self.context)
        llama.llama_free_model(self.model)


def measure(path: Path, args: argparse.Namespace, rng: np.random.Generator) -> dict[str, float]:
    """Tokens per second: prefill, one stream and many."""
    result = {}
    peer = Peer(path, args.threads, 1, args.context + 512)
    ids = [int(t) for t in rng.integers(100, peer.vocab - 100, args.prefill)]
    rates = []
    for _ in range(args.repeats):
        peer.forget()
        begin = time.perf_counter()
        peer.prefill(ids, 0)
        peer.best(-1)
        rates.append(len(ids) / (time.perf_counter() - begin))
    result["prefill"] = statistics.median(rates)
    peer.close()
    for streams, key in ((1, "decode_b1"), (args.streams, "decode_b16")):
        peer = Peer(path, args.threads, streams, args.context + 512)
        ids = [int(t) for t in rng.integers(100, peer.vocab - 100, args.context)]
        now = []
        for sequence in range(streams):
            peer.prefill(ids, sequence)
            now.append(peer.best(-1))
        rates = []
        position = len(ids)
        for _ in range(args.repeats):
            begin = time.perf_counter()
            for _ in range(args.steps):
                peer.decode([(token, position, s, True) for s, token in enumerate(now)])
                now = [peer.best(s) for s in range(streams)]
                position += 1
            rates.append(streams * args.steps / (time.perf_counter() - begin))
        result[key] = statistics.median(rates)
        peer.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--work", type=Path, required=True, help="folder for requantised copies")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--prefill", type=int, default=1024)
    parser.add_argument("--context", type=int, default=1000)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kinds", default="as-is,q4_0,q8_0")
    args = parser.parse_args()
    quiet = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(quiet, ctypes.c_void_p(0))
    llama.llama_backend_init()
    results = {}
    for kind in args.kinds.split(","):
        path = args.model if kind == "as-is" else requantise(args.model, kind, args.work)
        results[kind] = measure(path, args, np.random.default_rng(0))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
