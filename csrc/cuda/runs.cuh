// Runs of equal length in a chunk: slices of a gradient (slices.cuh), and what a shard holds of a whole parameter.
#pragma once

#include "core/slope.h"
#include "core/table.h"
#include "cuda/launch.h"

namespace lrt::cuda {

// The chunk's first element lies anywhere in a run, and from there on an element's run is found by one multiplication:
// with lengths and offsets below 2**14 the quotient is exact, and of runs longer than a chunk only the first border
// counts, wherever it lies.
struct ChunkRuns {
  int64_t begin;                      // of the chunk
  int64_t first;                      // the run in which it begins
  uint32_t shorter, offset, inverse;  // shorter: than a chunk, or as long

  ChunkRuns() = default;
  LRT_HD ChunkRuns(int64_t length, int64_t chunk_begin) : begin(chunk_begin), first(chunk_begin / length) {
    const int64_t border = length - (chunk_begin - first * length);
    shorter = static_cast<uint32_t>(length < kChunk ? length : kChunk);
    offset = shorter - static_cast<uint32_t>(border < shorter ? border : shorter);
    inverse = (uint32_t(1) << 31) / shorter + 1;
  }
  // The number of an element's run, counted from the chunk's first.
  LRT_HD uint32_t of(int64_t element) const {
    const uint32_t place = static_cast<uint32_t>(element - begin) + offset;
    return static_cast<uint32_t>(static_cast<uint64_t>(place) * inverse >> 31);
  }
  // Elements of that run from this one on, as far as the chunk has them.
  LRT_HD uint32_t left(int64_t element, uint32_t run) const {
    return (run + 1) * shorter - (static_cast<uint32_t>(element - begin) + offset);
  }
};

// Elements of the whole parameter: all from the first on, and some that are at neighbouring places of a chunk.
struct Span {
  int64_t begin, end;
};
struct Line {
  int64_t begin;
  uint32_t step, count;  // from one to the next; so many at least
};

// Which elements of the whole parameter those of a chunk are, by their places in memory: of a shard (core/index_map.h)
// and of a tensor one dimension of which lies innermost, as channels do in channels_last (core/table.h).
struct ChunkMap {
  const IndexMap& map;
  uint32_t slab, channels, places;  // of a channel
  ChunkRuns runs;                   // slabs, or of a contiguous tensor the shard's
  uint32_t inverse;                 // of channels, as ChunkRuns has its own
  int64_t first, gap;               // the chunk's first element, and what lies between two runs

  LRT_HD ChunkMap(const TableRow& row, int64_t chunk_begin)
      : map(row.map),
        slab(static_cast<uint32_t>(row.slab)),
        channels(static_cast<uint32_t>(row.channels)),
        places(slab ? slab / channels : 0),
        runs(slab             ? row.slab
             : map.is_whole() ? kMaxElements
                              : map.run,
             chunk_begin),
        inverse(slab ? (1u << 31) / channels + 1 : 0),
        first(0),
        gap(map.pitch - map.run) {
    if (!slab) first = map.base + chunk_begin + runs.first * gap;
  }
  LRT_HD int64_t element(int64_t place) const { return line(place).begin; }
  LRT_HD Line line(int64_t place) const {
    const uint32_t run = runs.of(place);
    if (!slab) return {first + (place - runs.begin) + run * gap, 1, runs.left(place, run)};
    const int64_t begin = (runs.first + run) * slab;
    const auto in_slab = static_cast<uint32_t>(place - begin);
    const auto of_channel = static_cast<uint32_t>(static_cast<uint64_t>(in_slab) * inverse >> 31);
    const uint32_t channel = in_slab - of_channel * channels;
    const int64_t index = begin + channel * places + of_channel;
    return {of_whole(index), places, map.is_whole() ? channels - channel : 1};
  }
  // Whether the chunk's tiles are tiles of the whole parameter, and which: if not, the number says nothing.
  LRT_HD bool has_tiles(int64_t end) const {
    if (slab || first % kTile != 0) return false;
    return runs.of(end - 1) == 0 || (map.run % kTile == 0 && map.pitch % kTile == 0);
  }
  LRT_HD int64_t tile(int64_t tile) const { return element(tile * kTile) / kTile; }
  // All from the first to the last that the chunk may have, which ends at a place.
  LRT_HD Span span(int64_t end) const {
    const uint32_t last = runs.of(end - 1);
    if (!slab) return {first, element(end - 1) + 1};
    return {of_whole(runs.first * slab), of_whole((runs.first + last + 1) * slab - 1) + 1};
  }

 private:
  LRT_HD int64_t of_whole(int64_t index) const { return map.is_whole() ? index : map.element(index); }
};

}  // namespace lrt::cuda
