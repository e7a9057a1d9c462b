// Attention of a step: its work, shared out among the threads of a team.
#pragma once

#include "plan.h"
#include "team.h"

namespace greenroom {

// What `Step` is made of, and its attention.
class Attention {
 protected:
  Attention(const Model& model, const Batch& batch)
      : m_(model),
        b_(batch),
        s_(carve(model, batch)),
        split_(splits(model, batch)),
        alone_(alone(batch)) {}

  // work(i) for i in [0, count): shared out, or all of it by every thread for its own copy.
  template <typename Work>
  void rows(Team& team, int count, Work work) const {
    if (!alone_) return team.share(count, 1, work);
    for (int i = 0; i < count; ++i) work(i);
  }

  uint8_t* page(const Layer& l, int sequence, int64_t position) const {
    const Group& g = b_.groups[l.group];
    int at = int(position / kPage) - g.first_page[sequence];
    return g.pages + g.slots[int64_t(sequence) * g.width + at] * g.page_bytes;
  }

  // One head of one row of qkv: norm, rotate, then queries to codes, keys and values to a page.
  void head(const Layer& l, int t, int h, int heads, float* work) const {
    int dim = m_.head_dim, keys_end = m_.q_heads + m_.kv_heads;
    float* x = s_.wide + (int64_t(t) * heads + h) * dim;
    int64_t position = b_.positions[t];
    if (h < keys_end) {
      if (l.qk_norm) rms_norm(x, l.qk_norm + h * dim, x, dim, m_.eps, work);
      int64_t at = position * (dim / 2);
      rope(x, b_.cos[l.rope] + at, b_.sin[l.rope] + at, dim);
    }
    if (h < m_.q_heads) {
      int64_t at = int64_t(t) * m_.q_heads + h;
      s_.q_scale[at] = quantize_query(x, dim, s_.q_codes + at * dim) * m_.attention_scale;
      return;
    }
    bool value = h >= keys_end;
    PageView view = page_view(page(l, s_.sequence[t], position), l.row, m_.kv_heads, dim,
                              h - (value ? keys_end : m_.q_heads));
    int64_t token = position % kPage;
    auto codes = const_cast<int8_t*>(value ? view.v : view.k) + token * view.stride;
    auto scale = const_cast<uint16_t*>(value ? view.v_scale : view.k_scale);
    scale[token * m_.kv_heads] = quantize_kv(x, dim, codes);
  }

  // The queries of work item `item`; queries count token by token, head by head of the group.
  struct Item {
    Queries q;
    int sequence, kv_head;
    int64_t at[kQueries];  // row * Hq + head
    int64_t first_page, last_page;
    int64_t first_span() const { return first_page / kSpanPages; }
    int64_t last_span() const { return last_page / kSpanPages; }
    int64_t first_in(int64_t span) const { return std::max(span * kSpanPages, first_page); }
    int64_t last_in(int64_t span) const {
      return std::min((span + 1) * kSpanPages - 1, last_page);
    }
  };

  // The first position that a row sees.
  int64_t low(const Layer& l, int row) const {
    return l.window ? std::max<int64_t>(0, int64_t(b_.positions[row]) + 1 - l.window) : 0;
  }

  // The queries of an item that see keys of span p; their number.
  static int seeing(const Item& item, int64_t p, int* which) {
    int count = 0;
    for (int q = 0; q < item.q.count; ++q)
      if (item.q.low[q] < (p + 1) * kSpan && item.q.high[q] > p * kSpan) which[count++] = q;
    return count;
  }

  void find(int item, const Layer& l, Item& out) const {
    int q = 0;
    while (s_.first_item[q + 1] <= item) ++q;
    item -= s_.first_item[q];
    int group = m_.q_heads / m_.kv_heads, count = b_.starts[q + 1] - b_.starts[q];
    int begin = item / m_.kv_heads * kQueries, end = std::min(begin + kQueries, count * group);
    out.sequence = q;
    out.kv_head = item % m_.kv_heads;
    out.q.count = end - begin;
    out.q.dim = m_.head_dim;
    for (int i = 0; i < end - begin; ++i) {
      int row = b_.starts[q] + (begin + i) / group;
      out.at[i] = int64_t(row) * m_.q_heads + out.kv_head * group + (begin + i) % group;
      out.q.codes[i] = s_.q_codes + out.at[i] * m_.head_dim;
      out.q.scale[i] = s_.q_scale[out.at[i]];
      out.q.high[i] = int64_t(b_.positions[row]) + 1;
      out.q.low[i] = low(l, row);
    }
    out.first_page = out.q.low[0] / kPage;
    out.last_page = (out.q.high[out.q.count - 1] - 1) / kPage;
  }

  // A page of the item's KV head, by its absolute number.
  PageView view(const Layer& l, const Item& item, int64_t index) const {
    return page_view(page(l, item.sequence, index * kPage), l.row, m_.kv_heads, m_.head_dim,
                     item.kv_head);
  }

  // What span p of an item gives, for the queries in `which`; returns their number.
  int attend_to(const Layer& l, const Item& item, int64_t p, Ahead& ahead, int* which,
                const Partial& out) const {
    PageView pages[kSpanPages];
    for (int64_t i = item.first_in(p); i <= item.last_in(p); ++i)
      pages[i % kSpanPages] = view(l, item, i);
    int count = seeing(item, p, which);
    attend_span(item.q, which, count, pages, p * kSpan, ahead, out);
    return count;
  }

  // What to ask for before span p of an item is read.
  Ahead before(const Layer& l, const Item& item, int64_t p) const {
    Ahead ahead;
    int64_t bytes = row_bytes(m_.kv_heads, m_.head_dim);
    for (int64_t i = item.first_in(p); i <= item.last_in(p); ++i)
      ahead.add(page(l, item.sequence, i * kPage) + l.row * bytes, bytes);
    return ahead;
  }

  // The online softmax of one item's queries.
  struct Running {
    float largest[kQueries], sum[kQueries];
    float* out;  // [queries, D]
  };

  // Whether logits are wanted of any row that an item has a query of.
  bool is_wanted(const Item& item) const {
    auto end = b_.wanted_rows + b_.wanted;
    auto row = std::lower_bound(b_.wanted_rows, end, int(item.at[0] / m_.q_heads));
    return row != end && *row <= item.at[item.q.count - 1] / m_.q_heads;
  }

  // How many KV heads go through a span together.
  int together() const { return std::min(m_.kv_heads, kMaxDim / m_.head_dim); }

  // Whether nobody but a row's own attention needs its heads: each sequence has one row, and all of
  // the row's heads are one piece of work.
  bool attends_by_row() const {
    return !split_ && b_.tokens == b_.sequences && together() == m_.kv_heads &&
           group_tiles(m_, 1) == 1;
  }

  // [tokens, Hq, D] of attention, for all threads, of all rows or all that are `wanted`. The KV
  // heads of a tile go through a span one after the other, since they take turns in its pages'
  // memory. `heads_left`: those of a row that are still to be made ready, or 0.
  const float* attend(Team& team, const Mine& mine, const Layer& l, int heads_left,
                      bool wanted) const {
    const int dim = m_.head_dim, most = together();
    const int groups = (m_.kv_heads + most - 1) / most;
    team.share_ahead(s_.first_item[b_.sequences] / m_.kv_heads * groups, [&](int u, int then) {
      const int first = u % groups * most, heads = std::min(most, m_.kv_heads - first);
      for (int h = 0; h < heads_left; ++h) head(l, u, h, heads_left, mine.work);
      Item items[kMaxDim / kBlock];
      Running running[kMaxDim / kBlock];
      alignas(64) float out[kQueries * kMaxDim], span_out[kQueries * kMaxDim];
      float span_largest[kQueries], span_sum[kQueries];
      for (int h = 0; h < heads; ++h) {
        find(u / groups * m_.kv_heads + first + h, l, items[h]);
        if (wanted && !is_wanted(items[h])) return;
        running[h].out = out + h * kQueries * dim;
        std::fill_n(running[h].largest, kQueries, -INFINITY);
        std::fill_n(running[h].sum, kQueries, 0.0f);
        std::fill_n(running[h].out, items[h].q.count * dim, 0.0f);
      }
      for (int64_t p = items[0].first_span(); p <= items[0].last_span(); ++p) {
        Ahead ahead;
        if (p < items[0].last_span()) {
          ahead = before(l, items[0], p + 1);
        } else if (then != u) {
          Item next;
          find(then / groups * m_.kv_heads, l, next);
          ahead = before(l, next, next.first_span());
        }
        for (int h = 0; h < heads; ++h) {
          int which[kQueries];
          int count = attend_to(l, items[h], p, ahead, which, {span_largest, span_sum, span_out});
          Running& r = running[h];
          for (int j = 0; j < count; ++j)
            merge(r.largest + which[j], r.sum + which[j], r.out + which[j] * dim, span_largest[j],
                  span_sum[j], span_out + j * dim, dim);
        }
        ahead.ask_for_rest();
      }
      for (int h = 0; h < heads; ++h)
        for (int q = 0; q < items[h].q.count; ++q)
          divide(running[h].out + q * dim, running[h].sum[q],
                 s_.mine.mixed + items[h].at[q] * dim, dim);
    });
    return s_.mine.mixed;
  }

  // A span of an item, where attention is split so: the KV heads of a span one after the other,
  // since they lie side by side.
  struct Piece {
    Item item;
    int64_t span;
    int at;  // the span, counted from the item's first
    bool is_real() const { return span <= item.last_span(); }
  };

  int pieces() const { return s_.first_item[b_.sequences] * int(most_spans(b_)); }

  Piece piece(const Layer& l, int u) const {
    const int spans = int(most_spans(b_)), heads = m_.kv_heads;
    Piece out;
    find(u / (spans * heads) * heads + u % heads, l, out.item);
    out.at = u / heads % spans;
    out.span = out.item.first_span() + out.at;
    return out;
  }

  // Few rows of few sequences: every span is a piece of work, then every head is. [tokens, Hq, D].
  const float* attend_by_span(Team& team, const Mine& mine, const Layer& l) const {
    int dim = m_.head_dim, spans = int(most_spans(b_));
    int64_t record = dim + 2, one = spans * record;  // partials of one query head
    team.share_ahead(pieces(), [&](int u, int then) {
      const Piece here = piece(l, u);
      const Item& item = here.item;
      if (!here.is_real()) return;
      Ahead ahead;
      if (then / m_.kv_heads != u / m_.kv_heads) {
        const Piece next = piece(l, then);
        if (next.is_real()) ahead = before(l, next.item, next.span);
      }
      alignas(64) float span_out[kQueries * kMaxDim];
      float largest[kQueries], sum[kQueries];
      int which[kQueries];
      int count = attend_to(l, item, here.span, ahead, which, {largest, sum, span_out});
      ahead.ask_for_rest();
      for (int j = 0; j < count; ++j) {
        float* to = s_.partial + item.at[which[j]] * one + here.at * record;
        to[0] = largest[j];
        to[1] = sum[j];
        std::memcpy(to + 2, span_out + j * dim, sizeof(float) * dim);
      }
    });
    rows(team, b_.tokens * m_.q_heads, [&](int h) {
      int row = h / m_.q_heads;
      int64_t begin = low(l, row) / kSpan;
      int64_t first = low(l, b_.starts[s_.sequence[row]]) / kSpan;  // of the row's item
      const float* from = s_.partial + h * one + (begin - first) * record;
      float largest = -INFINITY, sum = 0.0f;
      alignas(64) float out[kMaxDim] = {};
      for (int64_t p = begin; p <= b_.positions[row] / kSpan; ++p, from += record)
        merge(&largest, &sum, out, from[0], from[1], from + 2, dim);
      divide(out, sum, mine.mixed + int64_t(h) * dim, dim);
    });
    return mine.mixed;
  }

  const Model& m_;
  const Batch& b_;
  const Buffers s_;
  const bool split_, alone_;
};

}  // namespace greenroom
