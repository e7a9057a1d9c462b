// Products on AVX-512 VNNI: bytes, four inputs at a time (vpdpbusd).
//
// The instruction multiplies bytes without a sign by bytes with one, and reads the latter from
// memory as it goes. So weights are stored 128 higher, and what that adds to a row's sums, 128 times
// the sum of its codes, is taken off at the end. Sums may pass 32 bits on the way; what comes out
// does not (`quantize.max_code`), so they wrap back.
//
// Where codes may pass 127, few of a row do (`reference.activation_codes`): the product has bytes,
// cut off, and what is missing from a loud one is added input by input.
#pragma once

namespace greenroom {

constexpr int kTogether = 4;     // inputs of one output that lie together
constexpr int kUnitBlocks = 2;   // blocks of weights that a piece of work takes
constexpr int kTileRows = 14;    // with two blocks, 28 sums, two weights, a code
constexpr int kOnePass = 24;     // up to so many, weights are read once, one block at a time
constexpr int kFewRows = 4;      // up to so many, a row needs more sums than one
constexpr int kRaised = 128;     // how much higher than they are weights are stored
constexpr int kLoudIn = 8;       // fewer than one of so many inputs is loud, in rows of numbers

// An input whose code is `excess` more than its byte holds.
struct Loud {
  int32_t input, excess;
};

// What lies behind a row's bytes.
struct Tail {
  int32_t surplus;  // what raised weights add to its sums
  int32_t count;
  Loud loud[];
};

constexpr int64_t kLine = 64;

// Bytes from one row of codes to the next: an odd number of lines, so that rows spread over the
// first level's sets.
inline int64_t code_bytes(const Linear& l) {
  int64_t bytes = l.k + sizeof(Tail) + (is_wide(l) ? l.k / kLoudIn * sizeof(Loud) : 0);
  return ((bytes + kLine - 1) / kLine | 1) * kLine;
}

inline const Tail& tail_of(const uint8_t* codes, int k) {
  return *reinterpret_cast<const Tail*>(codes + k);
}

// Writes one row of codes for `next`; returns its scale.
inline float quantize_for(const Linear& next, const float* x, uint8_t* codes) {
  const int k = next.k;
  __m512 most = _mm512_setzero_ps();
  for (int i = 0; i < k; i += 16) most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_loadu_ps(x + i)));
  const float largest = _mm512_reduce_max_ps(most);
  float inverse = largest > kTiny ? float(next.max_code) / largest : 0.0f, wider = 1.0f;
  auto code = [&](int i) __attribute__((always_inline)) {
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), _mm512_set1_ps(inverse)));
  };
  if (is_wide(next)) {
    __m512i total = _mm512_setzero_si512();
    for (int i = 0; i < k; i += 16) total = _mm512_add_epi32(total, _mm512_abs_epi32(code(i)));
    wider = widened(_mm512_reduce_add_epi32(total), next);
    inverse /= wider;
  }
  auto& tail = *reinterpret_cast<Tail*>(codes + k);
  tail.count = 0;
  __m512i sum = _mm512_setzero_si512();
  for (int i = 0; i < k; i += 16) {
    __m512i c = code(i);
    sum = _mm512_add_epi32(sum, c);
    __m128i bytes = _mm512_cvtsepi32_epi8(c);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + i), bytes);
    if (!is_wide(next)) continue;
    __m512i excess = _mm512_sub_epi32(c, _mm512_cvtepi8_epi32(bytes));
    uint32_t loud = _mm512_test_epi32_mask(excess, excess);
    if (!loud) continue;
    alignas(64) int32_t by[16];
    _mm512_store_si512(by, excess);
    // A row with NaNs has no end of them; its results are none anyway.
    for (; loud && tail.count < k / kLoudIn; loud &= loud - 1) {
      int at = __builtin_ctz(loud);
      tail.loud[tail.count++] = {i + at, by[at]};
    }
  }
  tail.surplus = int32_t(uint32_t(_mm512_reduce_add_epi32(sum)) * kRaised);
  return largest * float(1.0 / next.max_code) * wider;
}

// What the loud inputs of a row add to its sums against one block of weights.
inline __m512i add_loud(__m512i sum, const Tail& tail, const int8_t* weight) {
  for (int i = 0; i < tail.count; ++i) {
    const Loud& loud = tail.loud[i];
    __m512i four = _mm512_loadu_si512(weight + loud.input / kTogether * kTogether * kBlock);
    __m512i one = _mm512_and_si512(_mm512_srlv_epi32(four, _mm512_set1_epi32(loud.input % 4 * 8)),
                                   _mm512_set1_epi32(255));
    sum = _mm512_dpwssd_epi32(sum, one, _mm512_set1_epi32(loud.excess));  // one's upper half is 0
  }
  return sum;
}

// sum += weights times four codes of a row. In assembly because GCC does not let the instruction
// read the codes itself.
GREENROOM_INLINE void add_products(__m512i& sum, __m512i weights, const uint8_t* codes) {
  typedef int32_t __attribute__((may_alias)) Four;
  asm("vpdpbusd %[codes]%{1to16%}, %[weights], %[sum]"
      : [sum] "+v"(sum)
      : [weights] "v"(weights), [codes] "m"(*reinterpret_cast<const Four*>(codes)));
}

// Whole sums of R rows, `stride` bytes apart, against B blocks of weights, `blocks` bytes apart:
// out[b][r].
template <int R, int B>
__attribute__((noinline)) void tile(const uint8_t* x, int64_t stride, int k, const int8_t* weight,
                                    int64_t blocks, int32_t (*out)[kOnePass][kBlock]) {
  __m512i sum[B][R];
#pragma GCC unroll 2
  for (int b = 0; b < B; ++b)
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r) sum[b][r] = _mm512_setzero_si512();
  for (int i = 0; i < k; i += kTogether, weight += kBlock * kTogether) {
    __m512i w[B];
#pragma GCC unroll 2
    for (int b = 0; b < B; ++b) {
      ask_ahead<_MM_HINT_T1>(weight + b * blocks);  // the first level holds rows of codes
      w[b] = _mm512_loadu_si512(weight + b * blocks);
    }
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int b = 0; b < B; ++b) add_products(sum[b][r], w[b], x + r * stride + i);
    }
  }
#pragma GCC unroll 2
  for (int b = 0; b < B; ++b)
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r) _mm512_store_si512(out[b][r], sum[b][r]);
}

// The same for few rows and one block; the multiply-add takes several cycles, so with four sums.
// `ahead`: how many bytes further what is read later lies.
template <int R>
__attribute__((noinline)) void narrow_tile(const uint8_t* x, int64_t stride, int k,
                                           const int8_t* weight, int64_t ahead,
                                           int32_t (*out)[kOnePass][kBlock]) {
  constexpr int kSums = 4;
  __m512i sum[R][kSums];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s) sum[r][s] = _mm512_setzero_si512();
  for (int i = 0; i < k; i += kSums * kTogether) {
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s, weight += kBlock * kTogether) {
      ask_ahead<_MM_HINT_NTA>(weight, ahead);
      __m512i w = _mm512_loadu_si512(weight);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
        add_products(sum[r][s], w, x + r * stride + i + s * kTogether);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
    _mm512_store_si512(out[0][r], _mm512_add_epi32(_mm512_add_epi32(sum[r][0], sum[r][1]),
                                                   _mm512_add_epi32(sum[r][2], sum[r][3])));
}

template <int B, int R>
inline void tile_of(int rows, const uint8_t* x, int64_t stride, int k, const int8_t* weight,
                    int64_t blocks, int64_t ahead, int32_t (*out)[kOnePass][kBlock]) {
  if constexpr (R > 1) {
    if (rows < R) return tile_of<B, R - 1>(rows, x, stride, k, weight, blocks, ahead, out);
  }
  if constexpr (R <= kFewRows) {
    for (int b = 0; b < B; ++b) narrow_tile<R>(x, stride, k, weight + b * blocks, ahead, out + b);
  } else if constexpr (R <= kTileRows) {
    tile<R, B>(x, stride, k, weight, blocks, out);
  } else {
    for (int b = 0; b < B; ++b) tile<R, 1>(x, stride, k, weight + b * blocks, blocks, out + b);
  }
}

// Calls emit(block, first row, rows, results) for B blocks from `index` on, tile by tile. What few
// rows read later lies `ahead` bytes further.
template <int B, typename Emit>
inline void blocks_of(const Linear& linear, int index, const Rows& x, int64_t ahead, Emit emit) {
  const int64_t block_bytes = int64_t(kBlock) * linear.k, stride = code_bytes(linear);
  const int8_t* weight = linear.weight + index * block_bytes;
  const int most = x.count <= kOnePass ? kOnePass : kTileRows;
  alignas(64) int32_t sums[B][kOnePass][kBlock];
  alignas(64) float out[kOnePass][kBlock];
  int tiles = (x.count + most - 1) / most;
  for (int t = 0; t < tiles; ++t) {
    int begin = int64_t(x.count) * t / tiles, rows = int64_t(x.count) * (t + 1) / tiles - begin;
    const uint8_t* codes = x.codes + begin * stride;
    tile_of<B, kOnePass>(rows, codes, stride, linear.k, weight, block_bytes, ahead, sums);
    for (int b = 0; b < B; ++b) {
      const __m512 scale = _mm512_loadu_ps(linear.scale + (index + b) * kBlock);
      for (int r = 0; r < rows; ++r) {
        const Tail& tail = tail_of(codes + r * stride, linear.k);
        __m512i sum = add_loud(_mm512_load_si512(sums[b][r]), tail, weight + b * block_bytes);
        __m512 whole = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_set1_epi32(tail.surplus)));
        __m512 by = _mm512_set1_ps(x.scale[begin + r]);
        _mm512_store_ps(out[r], _mm512_mul_ps(_mm512_mul_ps(whole, by), scale));
      }
      emit(index + b, begin, rows, out);
    }
  }
}

// The same for up to kUnitBlocks blocks from `index` on, as many as there are.
template <typename Emit>
inline void blocks(const Linear& linear, int index, const Rows& x, Emit emit) {
  if (index + kUnitBlocks <= padded(linear.n) / kBlock)
    blocks_of<kUnitBlocks>(linear, index, x, kAhead, emit);
  else
    blocks_of<1>(linear, index, x, kAhead, emit);
}

}  // namespace greenroom
