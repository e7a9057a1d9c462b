// What Python calls, by ctypes: cpu.py, steps.py, coarse.py and draws.py say what each is given.

#include <optional>

#include "helpers.h"
#include "sample.h"
#include "step.h"

// How many inputs of one output lie together in packed weights.
extern "C" int32_t greenroom_inputs_together() { return greenroom::kTogether; }

// How much higher than they are packed weights are stored, modulo 256.
extern "C" int32_t greenroom_raised_by() { return greenroom::kRaised; }

// Bytes of a block of a coarse head of `inputs`; see `Coarse`.
extern "C" int64_t greenroom_coarse_bytes(int32_t inputs) {
  return greenroom::coarse_bytes(inputs);
}

// Makes a packed head coarse but for what its blocks end with; see `make_coarse`.
extern "C" void greenroom_coarsen(const greenroom::Linear* head, const uint8_t* nearest,
                                  const uint8_t* levels, const float* weights,
                                  const float* directions, int8_t* blocks, float* along,
                                  float* squares, int32_t threads) {
  using namespace greenroom;
#pragma omp parallel for num_threads(threads)
  for (int b = 0; b < padded(head->n) / kBlock; ++b)
    make_coarse(*head, b, nearest, levels, weights, directions,
                blocks + b * coarse_bytes(head->k), along + int64_t(b) * kBlock * kDirections,
                squares + int64_t(b) * kBlock);
}

// Bytes of scratch that a batch of this shape needs.
extern "C" int64_t greenroom_scratch_bytes(const greenroom::Model* model,
                                           const greenroom::Batch* batch) {
  return greenroom::carve(*model, *batch).bytes;
}

// Runs the batch; writes its KV and its logits. Returns 0, or 1 when the scratch is too small.
extern "C" int32_t greenroom_forward(const greenroom::Model* model,
                                     const greenroom::Batch* batch) {
  using namespace greenroom;
  if (greenroom_scratch_bytes(model, batch) > batch->scratch_bytes) return 1;
  Step step(*model, *batch);
  std::optional<Team> team;
#pragma omp parallel num_threads(batch->threads)
  {
#pragma omp single
    team.emplace(omp_get_num_threads());
    step.run(*team, omp_get_thread_num());
  }
  return 0;
}

// The tokens of rows of logits [rows, vocab], which are used up; kNoToken where there is none.
// `largest`: those of every block of 16, or null. `asks`: null where all rows' are greedy.
extern "C" void greenroom_draw(float* logits, const float* largest, const greenroom::Ask* asks,
                               const int32_t* ids, int32_t* tokens, int32_t rows, int32_t vocab,
                               int32_t threads) {
  using namespace greenroom;
  static const Ask kGreedy{0, 1, 0, 1, -INFINITY, 0, 0, 0, 0, 1};
  auto draw = [&](int i) {
    const Ask& ask = asks ? asks[i] : kGreedy;
    float* row = logits + int64_t(i) * vocab;
    const float* known = largest ? largest + int64_t(i) * (padded(vocab) / kBlock) : nullptr;
    if (!ask.wanted)
      tokens[i] = kNoToken;
    else if (known && !ask.temperature && ask.begin == ask.end)
      tokens[i] = greedy_token(row, vocab, known);
    else
      tokens[i] = Draw(ask, row, vocab, ids, known).token();
  };
  auto quick = [&](const Ask& ask) { return !(ask.wanted && ask.temperature); };
  const bool all_quick = largest && (!asks || std::all_of(asks, asks + rows, quick));
  if (rows > 1 && threads > 1 && !all_quick) {
    Helpers::all().share(rows, threads, draw);
  } else {
    for (int i = 0; i < rows; ++i) draw(i);
  }
}
