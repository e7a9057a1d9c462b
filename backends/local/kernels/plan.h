// What a step is given, and where it keeps what lies between its phases.
#pragma once

#include "attention.h"
#include "coarse.h"
#include "gemm.h"

namespace greenroom {

// These structs are mirrored, field by field, in structs.py.
struct Layer {
  Linear qkv, out, gate_up, down;
  const float *before_attention, *before_mlp;
  const float *qk_norm, *after_attention, *after_mlp;  // null where the model has none
  int32_t owns, group, row, window, rope;              // window 0: global
};

struct Model {
  Linear embedding, head;
  Coarse coarse;
  const float *norm, *embed_factor;
  const Layer* layers;
  int32_t layer_count, hidden, q_heads, kv_heads, head_dim, inner, vocab, gelu;
  float eps, attention_scale;
};

struct Group {
  uint8_t* pages;
  const int32_t *slots, *first_page;
  int64_t page_bytes;
  int32_t width;  // entries of `slots` for one sequence
};

struct Batch {
  const int32_t *ids, *positions, *starts, *lengths, *wanted_rows;
  const Group* groups;
  const float *const *cos, *const *sin;  // by rope: [positions, D / 2]
  float *logits, *largest;               // [wanted, vocab]; of every block: [wanted, blocks]
  int32_t* read;                         // null, or only the largest logits are asked for:
                                         // how many blocks of the head were read for them
  uint8_t* scratch;
  int64_t scratch_bytes;
  int32_t tokens, sequences, wanted, threads, pages;  // pages: the most of any sequence and group
};

constexpr int kSplitItems = 4;  // per thread: with fewer, attention is split by span as well
constexpr int kRowChunk = 112;  // rows whose activations stay in the second level cache
constexpr int kAlone = 4;       // up to so many rows, every thread does all work between products

// What a thread adds, normalises and rounds: shared rows, or with few rows a copy of its own, which
// costs less than to wait for the others.
struct Mine {
  float *x, *mixed, *row_scale, *work;
  uint8_t* codes;
};

struct Buffers {
  Mine mine;  // the first thread's; `each` bytes further the next one's
  int64_t each;
  float *wide, *narrow, *gated, *q_scale, *partial, *floors;
  QueryCode* q_codes;
  int32_t *sequence, *first_item;
  int64_t bytes;
};

class Carver {
 public:
  explicit Carver(uint8_t* at) : begin_(at), at_(at) {}
  template <typename T>
  void take(T*& out, int64_t count) {
    out = reinterpret_cast<T*>(at_);
    at_ += (count * int64_t(sizeof(T)) + 127) / 64 * 64;
  }
  void skip(int64_t bytes) { at_ += bytes; }
  int64_t taken() const { return at_ - begin_; }

 private:
  uint8_t *begin_, *at_;
};

inline int longest_row(const Model& m) {
  return std::max({m.hidden, m.inner, m.q_heads * m.head_dim});
}

// The most bytes of a row of codes; all layers are of one shape.
inline int64_t longest_codes(const Model& m) {
  const Layer& l = m.layers[0];
  return std::max({code_bytes(l.qkv), code_bytes(l.out), code_bytes(l.gate_up),
                   code_bytes(l.down), code_bytes(m.head)});
}

inline int group_tiles(const Model& m, int count) {
  return (count * (m.q_heads / m.kv_heads) + kQueries - 1) / kQueries;
}

inline bool splits(const Model& m, const Batch& b) {
  for (int q = 0; q < b.sequences; ++q)
    if (group_tiles(m, b.starts[q + 1] - b.starts[q]) > group_tiles(m, 1)) return false;
  return b.sequences * m.kv_heads * group_tiles(m, 1) < kSplitItems * b.threads;
}

// The most spans that any query reads keys of: the first and the last may be cut.
inline int64_t most_spans(const Batch& b) { return (b.pages + kSpanPages - 2) / kSpanPages + 1; }

inline bool alone(const Batch& b) { return b.tokens <= kAlone; }

inline Buffers carve(const Model& m, const Batch& b) {
  Buffers s;
  Carver carver(b.scratch);
  int64_t rows = std::max(b.tokens, b.wanted), heads = m.q_heads + 2 * m.kv_heads;
  int64_t work = 2 * power_of_two(longest_row(m));
  carver.take(s.mine.x, rows * m.hidden);
  carver.take(s.mine.mixed, rows * m.q_heads * m.head_dim);
  carver.take(s.mine.row_scale, rows);
  carver.take(s.mine.codes, rows * longest_codes(m));
  int64_t shared = alone(b) ? 0 : carver.taken();
  carver.take(s.mine.work, work);
  s.each = carver.taken() - shared;
  carver.skip(s.each * (b.threads - 1));
  carver.take(s.wide, rows * heads * m.head_dim);
  carver.take(s.narrow, rows * m.hidden);
  carver.take(s.gated, rows * m.inner);
  carver.take(s.q_scale, rows * m.q_heads);
  carver.take(s.q_codes, rows * m.q_heads * m.head_dim);
  carver.take(s.sequence, rows);
  carver.take(s.first_item, b.sequences + 1);
  int64_t partials = splits(m, b) ? rows * m.q_heads * most_spans(b) : 0;
  carver.take(s.partial, partials * (m.head_dim + 2));
  carver.take(s.floors, kLooks * kFloors);
  s.bytes = carver.taken();
  return s;
}

template <typename T>
T* moved(T* pointer, int64_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<uint8_t*>(pointer) + bytes);
}

}  // namespace greenroom
