// One linear layer: int8 weights times activation codes, exact in int32.
//
// Weights lie in blocks of 16 outputs, a few inputs of each together: [N / 16][K / P][16][P] int8,
// with P = kTogether, so that one multiply-add feeds 16 outputs and no sum crosses lanes. What a
// row of codes looks like, and the tiles, are the instruction set's: gemm_avx2.h, gemm_vnni.h.
#pragma once

#include "vector.h"

namespace greenroom {

constexpr int kBlock = 16;
constexpr int kReach = 32;  // a row's step is so wide that 127 of them reach 16 to 32 mean magnitudes
// Bytes of weights between what is read and what is asked for; measured, one row and sixteen.
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
constexpr int kAhead = 8192;
#else
constexpr int kAhead = 1024;
#endif

// `n` outputs and `k` inputs, k padded to 16; scale is padded to whole blocks.
struct Linear {
  const int8_t* weight;
  const float* scale;
  int32_t n, k, max_code;
};

// Whether some of a row's codes may pass 127.
inline bool is_wide(const Linear& l) { return l.max_code > 127; }

// How much wider than the largest magnitude asks for a row's step is; see
// `reference.activation_codes`. total: the sum of magnitudes of the codes that it asks for.
inline float widened(int32_t total, const Linear& l) {
  int64_t even = 127 * int64_t(l.k);
  float wider = 1.0f;
  for (int code = l.max_code / 2; code >= 127; code /= 2) {
    even *= 2;
    if (int64_t(total) * kReach >= even) wider *= 2.0f;
  }
  return wider;
}

inline int padded(int n) { return (n + kBlock - 1) / kBlock * kBlock; }

// Weights are read in order, faster than the hardware asks for them by itself. Those that a step
// reads once (NTA) leave the caches to all else: KV, and whatever runs between steps.
template <_mm_hint Near = _MM_HINT_T0>
GREENROOM_INLINE void ask_ahead(const int8_t* weight, int64_t ahead = kAhead) {
  _mm_prefetch(reinterpret_cast<const char*>(weight) + ahead, Near);
}

// Rows of activation codes for one linear layer, code_bytes(layer) apart, with one scale a row.
struct Rows {
  const uint8_t* codes;
  const float* scale;
  int count;
};

}  // namespace greenroom

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include "gemm_vnni.h"
#else
#include "gemm_avx2.h"
#endif

namespace greenroom {

// The weight of one output and input.
inline int8_t weight_at(const Linear& l, int n, int k) {
  int64_t block = int64_t(n / kBlock) * kBlock * l.k;
  int8_t stored = l.weight[block + (k / kTogether * kBlock + n % kBlock) * kTogether + k % kTogether];
  return int8_t(stored - kRaised);
}

}  // namespace greenroom
