// One step of the int8 decoder over a mixed batch of prefill chunks and decodes.
//
// Equal to the pure PyTorch path of backends/local/model.py bit for bit: integers are summed as
// integers, floats in the order that reference.py fixes, so neither threads nor batch nor chunking
// changes a result. Sizes are checked by steps.py; nothing here allocates.
#pragma once

#include "attend.h"

namespace greenroom {

// Everything below is run by all threads of a team at once; each `share` is one phase.
class Step : Attention {
 public:
  Step(const Model& model, const Batch& batch)
      : Attention(model, batch),
        coarse_(m_.coarse.blocks && !is_wide(m_.head) && b_.read && b_.wanted <= kLooks) {
    s_.first_item[0] = 0;
    for (int q = 0; q < b_.sequences; ++q) {
      int count = b_.starts[q + 1] - b_.starts[q];
      for (int t = b_.starts[q]; t < b_.starts[q + 1]; ++t) s_.sequence[t] = q;
      s_.first_item[q + 1] = s_.first_item[q] + group_tiles(m_, count) * m_.kv_heads;
    }
  }

  void run(Team& team, int thread) const {
    Mine mine = s_.mine;
    int64_t bytes = s_.each * thread;
    mine.work = moved(mine.work, bytes);
    if (alone_) {
      mine.x = moved(mine.x, bytes);
      mine.mixed = moved(mine.mixed, bytes);
      mine.row_scale = moved(mine.row_scale, bytes);
      mine.codes = moved(mine.codes, bytes);
    }
    rows(team, b_.tokens, m_.layers[0].qkv, [&](int t) {
      embed(mine, t);
      normalise(mine, t, t, m_.layers[0].before_attention, m_.layers[0].qkv);
    });
    for (int i = 0; i < m_.layer_count; ++i) layer(team, mine, i);
    rows(team, b_.wanted, m_.head,
         [&](int i) { normalise(mine, i, b_.wanted_rows[i], m_.norm, m_.head); });
    auto emit = [&](int n, int r, int rows, float(*out)[kBlock]) {
      for (int i = 0; i < rows; ++i) store(n, r + i, out[i]);
    };
    if (coarse_)
      likeliest(team, mine, emit);
    else
      matmul(team, mine, m_.head, b_.wanted, emit);
    _mm_sfence();
  }

 private:
  // `rows` of a product, whose first weights come meanwhile.
  template <typename Work>
  void rows(Team& team, int count, const Linear& next, Work work) const {
    const int8_t* weight = next.weight + int64_t(team.first_of(units(next) * chunks(count))) %
                                             units(next) * kUnitBlocks * kBlock * next.k;
    if (coarse_ && &next == &m_.head)
      weight = m_.coarse.blocks + team.first_of(padded(m_.vocab) / kBlock) * coarse_bytes(next.k);
    for (int i = -kAhead; i < 0; i += 64) ask_ahead<_MM_HINT_NTA>(weight + i);
    Attention::rows(team, count, work);
  }
  using Attention::rows;

  static int units(const Linear& linear) {
    return (padded(linear.n) / kBlock + kUnitBlocks - 1) / kUnitBlocks;
  }
  static int chunks(int rows) { return (rows + kRowChunk - 1) / kRowChunk; }

  void embed(const Mine& mine, int t) const {
    const Linear& e = m_.embedding;
    int id = b_.ids[t];
    float* x = mine.x + int64_t(t) * m_.hidden;
    for (int d = 0; d < m_.hidden; ++d)
      x[d] = float(weight_at(e, id, d)) * e.scale[id] * m_.embed_factor[d];
  }

  // Row `to` of the activation codes: row t normed, then quantised for `next`.
  void normalise(const Mine& mine, int to, int t, const float* weight, const Linear& next) const {
    float* out = mine.work + power_of_two(m_.hidden);
    rms_norm(mine.x + int64_t(t) * m_.hidden, weight, out, m_.hidden, m_.eps, mine.work);
    quantise(mine, to, out, next);
  }

  void quantise(const Mine& mine, int t, const float* x, const Linear& next) const {
    mine.row_scale[t] = quantize_for(next, x, mine.codes + t * code_bytes(next));
  }

  // emit(first output, first row, rows, results) for every block of outputs and tile of rows.
  template <typename Emit>
  void matmul(Team& team, const Mine& mine, const Linear& linear, int count, Emit emit) const {
    const int every = units(linear), piece = std::clamp(every / (team.size() * 8), 1, 64);
    team.share(every * chunks(count), piece, [&](int u) {
      int row = u / every * kRowChunk;
      Rows x{mine.codes + row * code_bytes(linear), mine.row_scale + row,
             std::min(kRowChunk, count - row)};
      blocks(linear, u % every * kUnitBlocks, x,
             [&](int index, int first, int rows, float (*out)[kBlock]) {
               emit(index * kBlock, row + first, rows, out);
             });
    });
  }

  void matmul_to(Team& team, const Mine& mine, const Linear& linear, int count, float* to,
                 int64_t stride) const {
    matmul(team, mine, linear, count, [&](int n, int r, int rows, float (*out)[kBlock]) {
      for (int i = 0; i < rows; ++i)
        std::memcpy(to + (r + i) * stride + n, out[i], sizeof(out[i]));
    });
  }

  void layer(Team& team, const Mine& mine, int index) const {
    const Layer& l = m_.layers[index];
    const Layer* next = index + 1 < m_.layer_count ? &l + 1 : nullptr;
    int heads = m_.q_heads + (l.owns ? 2 * m_.kv_heads : 0), mixed = m_.q_heads * m_.head_dim;
    project_heads(team, mine, l, heads);
    const bool fused = attends_by_row();
    if (!fused)
      team.share(b_.tokens * heads, 4,
                 [&](int i) { head(l, i / heads, i % heads, heads, mine.work); });
    // Behind its keys and values, the last layer goes on with the rows that are looked at alone.
    const int count = next ? b_.tokens : b_.wanted;
    auto row = [&](int i) { return next ? i : b_.wanted_rows[i]; };
    const float* attended =
        split_ ? attend_by_span(team, mine, l) : attend(team, mine, l, fused ? heads : 0, !next);
    rows(team, count, l.out,
         [&](int i) { quantise(mine, i, attended + int64_t(row(i)) * mixed, l.out); });
    matmul_to(team, mine, l.out, count, s_.narrow, m_.hidden);
    rows(team, count, l.gate_up, [&](int i) {
      add(mine, i, row(i), l.after_attention);
      normalise(mine, i, row(i), l.before_mlp, l.gate_up);
    });
    // Blocks of gate_up hold eight gates and their eight ups.
    matmul(team, mine, l.gate_up, count, [&](int n, int r, int rows, float (*out)[kBlock]) {
      for (int i = 0; i < rows; ++i)
        _mm256_storeu_ps(s_.gated + int64_t(r + i) * m_.inner + n / 2,
                         gate8(_mm256_load_ps(out[i]), _mm256_load_ps(out[i] + 8), m_.gelu));
    });
    rows(team, count, l.down,
         [&](int i) { quantise(mine, i, s_.gated + int64_t(i) * m_.inner, l.down); });
    matmul_to(team, mine, l.down, count, s_.narrow, m_.hidden);
    rows(team, count, next ? next->qkv : m_.head, [&](int i) {
      add(mine, i, row(i), l.after_mlp);
      if (next) normalise(mine, i, i, next->before_attention, next->qkv);
    });
  }

  // A block of logits of row i, from output n on, and its largest.
  void store(int n, int i, const float* block) const {
    const int64_t blocks = padded(m_.vocab) / kBlock;
    b_.largest[i * blocks + n / kBlock] = store_logits(
        block, std::min(kBlock, m_.vocab - n), b_.logits + int64_t(i) * m_.vocab + n);
  }

  // The logits that may be a row's largest; all others are -inf.
  template <typename Emit>
  void likeliest(Team& team, const Mine& mine, Emit emit) const {
    alignas(64) float none[kBlock];
    std::fill_n(none, kBlock, -INFINITY);
    greenroom::likeliest(
        team, m_.coarse, m_.head, {mine.codes, mine.row_scale, b_.wanted}, b_.largest, s_.floors,
        b_.read,
        [&](int b, int r, int rows, float(*out)[kBlock]) { emit(b * kBlock, r, rows, out); },
        [&](int b) {
          for (int i = 0; i < b_.wanted; ++i) store(b * kBlock, i, none);
        });
  }

  // Queries, keys and values; where attention is split by span, what this thread's begins with is
  // asked for meanwhile.
  void project_heads(Team& team, const Mine& mine, const Layer& l, int heads) const {
    const int64_t stride = int64_t(heads) * m_.head_dim;
    if (!split_) return matmul_to(team, mine, l.qkv, b_.tokens, s_.wide, stride);
    const Piece first = piece(l, team.first_of(pieces()));
    Ahead ahead = first.is_real() ? before(l, first.item, first.span) : Ahead{};
    const int lines = ahead.lines() / std::max(1, padded(l.qkv.n) / kBlock / team.size()) + 1;
    matmul(team, mine, l.qkv, b_.tokens, [&](int n, int r, int rows, float (*out)[kBlock]) {
      for (int i = 0; i < rows; ++i)
        std::memcpy(s_.wide + (r + i) * stride + n, out[i], sizeof(out[i]));
      ahead.ask(lines);
    });
  }

  // x += h, or x += norm(h), for row t of x and row `from` of h. Other threads may read h too.
  void add(const Mine& mine, int from, int t, const float* norm) const {
    const float* h = s_.narrow + int64_t(from) * m_.hidden;
    float* x = mine.x + int64_t(t) * m_.hidden;
    if (norm) {
      float* normed = mine.work + power_of_two(m_.hidden);
      rms_norm(h, norm, normed, m_.hidden, m_.eps, mine.work);
      h = normed;
    }
    for (int d = 0; d < m_.hidden; ++d) x[d] = x[d] + h[d];
  }

  const bool coarse_;
};

}  // namespace greenroom
