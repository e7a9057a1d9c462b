// Attention over one span of int8 KV, and the merge of spans; see `attend` in reference.py.
#pragma once

#include <algorithm>
#include <cmath>

#include "vector.h"

namespace greenroom {

constexpr int kSpanPages = 4, kSpan = kSpanPages * kPage;
constexpr int kQueries = 16;  // query heads that go through a span together
constexpr int kMaxDim = 512;

// One layer of one page for one KV head; `stride` is Hkv * D.
struct PageView {
  const int8_t *k, *v;
  const uint16_t *k_scale, *v_scale;
  int64_t stride;
  int heads;
};

// Bytes of one layer of one page.
inline int64_t row_bytes(int kv_heads, int dim) { return int64_t(kPage) * kv_heads * 2 * (dim + 2); }

inline PageView page_view(const uint8_t* page, int row, int kv_heads, int dim, int head) {
  int64_t codes = int64_t(kPage) * kv_heads * dim, scales = int64_t(kPage) * kv_heads * 2;
  const uint8_t* base = page + row * row_bytes(kv_heads, dim);
  auto half = [&](int64_t at) { return reinterpret_cast<const uint16_t*>(base + at) + head; };
  auto byte = [&](int64_t at) { return reinterpret_cast<const int8_t*>(base + at) + head * dim; };
  return {byte(0), byte(codes), half(2 * codes), half(2 * codes + scales),
          int64_t(kv_heads) * dim, kv_heads};
}

// Pages that a thread reads next, asked for line by line while it works on others: all at once they
// would wait for each other, and nobody would read memory in between.
class Ahead {
 public:
  // One layer of one page, for all KV heads.
  void add(const uint8_t* row, int64_t bytes) {
    rows_[count_++] = reinterpret_cast<const char*>(row);
    lines_ = (bytes + 63) / 64;
  }

  // How many there are in all.
  int lines() const { return int(count_ * lines_); }

  // Asks for the next few lines, if any are left.
  GREENROOM_INLINE void ask(int lines) {
    if (left_ <= 0 && !turn_page()) return;
    for (int i = 0; i < lines; ++i) _mm_prefetch(at_ + i * 64, _MM_HINT_T1);
    at_ += lines * 64;
    left_ -= lines;
  }

  // Asks for what is left of a page, or for the whole next one.
  void ask_for_page() { ask(left_ > 0 || turn_page() ? int(left_) : 0); }

  void ask_for_rest() {
    for (int i = next_; i <= count_; ++i) ask_for_page();
  }

 private:
  bool turn_page() {
    if (next_ == count_) return false;
    at_ = rows_[next_++];
    left_ = lines_;
    return true;
  }

  const char *rows_[kSpanPages], *at_;
  int64_t lines_ = 0, left_ = 0;
  int count_ = 0, next_ = 0;
};

// The scales of a page's tokens for one head of several, which take turns.
inline void read_scales(const uint16_t* from, int heads, float* out) {
  if (heads == 1) {
    for (int s = 0; s < kPage; s += 8)
      _mm256_storeu_ps(out + s, _mm256_cvtph_ps(_mm_loadu_si128(
                                    reinterpret_cast<const __m128i*>(from + s))));
    return;
  }
#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
  if (heads <= 4) {  // 16 of them lie within two registers
    alignas(64) uint16_t places[32];
    for (int i = 0; i < 32; ++i) places[i] = uint16_t(i % 16 * heads);
    const __m512i place = _mm512_load_si512(places);
    const uint64_t there = (uint64_t(1) << (15 * heads + 1)) - 1;  // of 64: none behind the last
    for (int s = 0; s < kPage; s += 16) {
      const uint16_t* at = from + s * heads;
      __m512i low = _mm512_maskz_loadu_epi16(__mmask32(there), at);
      __m512i high = _mm512_maskz_loadu_epi16(__mmask32(there >> 32), at + 32);
      __m512i mine = _mm512_permutex2var_epi16(low, place, high);
      _mm512_storeu_ps(out + s, _mm512_cvtph_ps(_mm512_castsi512_si256(mine)));
    }
    return;
  }
#endif
  for (int s = 0; s < kPage; ++s) out[s] = _cvtsh_ss(from[s * heads]);
}

// Keys of page p among keys [begin, end) of a span, counted from the page's own first.
inline int first_of(int p, int begin) { return std::max(begin - p * kPage, 0); }
inline int end_of(int p, int end) { return std::min(end - p * kPage, kPage); }

}  // namespace greenroom

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include "attention_vnni.h"
#else
#include "attention_avx2.h"
#endif

namespace greenroom {

// Queries of one sequence and one KV head; seen keys of query i are [low[i], high[i]).
struct Queries {
  int count, dim;
  const QueryCode* codes[kQueries];
  float scale[kQueries];
  int64_t low[kQueries], high[kQueries];
};

// What spans give, per query: the largest score, the sum of weights, the weighted values.
struct Partial {
  float* largest;
  float* sum;
  float* out;  // [count, dim]
};

// One span for all queries; `first_key` is the position of its first token. Every query here sees
// at least one of its keys, and no page is looked at that none sees.
inline void attend_span(const Queries& q, const int* which, int count, const PageView* pages,
                        int64_t first_key, Ahead& ahead, const Partial& result) {
  alignas(64) float k_scale[kSpan], v_scale[kSpan];
  alignas(64) float score[kQueries][kSpan];
  alignas(64) WeightCode weight[kQueries][kSpan];
  float step[kQueries];
  const QueryCode* codes[kQueries];
  int from[kQueries], to[kQueries], begin = kSpan, end = 0;
  for (int i = 0; i < count; ++i) {
    int w = which[i];
    codes[i] = q.codes[w];
    from[i] = int(std::max<int64_t>(q.low[w] - first_key, 0));
    to[i] = int(std::min<int64_t>(q.high[w] - first_key, kSpan));
    begin = std::min(begin, from[i]);
    end = std::max(end, to[i]);
  }
  for (int p = begin / kPage; p * kPage < end; ++p) {
    const PageView& page = pages[p];
    read_scales(page.k_scale, page.heads, k_scale + p * kPage);
    read_scales(page.v_scale, page.heads, v_scale + p * kPage);
    score_page(codes, count, q.dim, page, p, first_of(p, begin), end_of(p, end), score, ahead);
  }
  for (int i = 0; i < count; ++i)
    step[i] = weigh(score[i], q.scale[which[i]], k_scale, v_scale, from[i], to[i], begin & ~15,
                    (end + 15) & ~15, weight[i], result.largest + i, result.sum + i, ahead);
  mix_span(weight, step, count, q.dim, pages, begin, end, result.out, ahead);
}

// Folds one span's result for one query into what came before it.
inline void merge(float* largest, float* sum, float* out, float span_largest, float span_sum,
                  const float* span_out, int dim) {
  float top = std::max(*largest, span_largest);
  float less = exp1(std::min(*largest, span_largest) - top);  // the other is exp(0), which is 1
  bool later = span_largest > *largest;
  float old = later ? less : 1.0f, fresh = later ? 1.0f : less;
  *largest = top;
  *sum = *sum * old + span_sum * fresh;
  __m256 a = _mm256_set1_ps(old), b = _mm256_set1_ps(fresh);
  for (int d = 0; d < dim; d += 8)
    _mm256_storeu_ps(out + d, _mm256_add_ps(_mm256_mul_ps(_mm256_loadu_ps(out + d), a),
                                            _mm256_mul_ps(_mm256_loadu_ps(span_out + d), b)));
}

inline void divide(const float* x, float by, float* out, int dim) {
  __m256 d = _mm256_set1_ps(by);
  for (int i = 0; i < dim; i += 8)
    _mm256_storeu_ps(out + i, _mm256_div_ps(_mm256_loadu_ps(x + i), d));
}

}  // namespace greenroom
