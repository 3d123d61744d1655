// The keep decisions of a shard, which are those of the whole parameter's elements (core/index_map.h), and its step:
// see engine.h. Built for one instruction set, named by the build (-DLRT_ISA=Avx512, Avx2 or Baseline).
#include <algorithm>
#include <cstring>

#include "cpu/engine.h"
#include "cpu/lanes.h"

namespace lrt::cpu {
namespace {

// The tile of the whole parameter that was drawn last, as far as it was: the next piece of a shard often begins in it.
struct Drawn {
  KeepStream stream;
  uint32_t threshold = 0;
  int64_t tile = -1;
  uint64_t lanes = 0;  // a bit for each lane whose calls were made
  TileKeeps keeps;

  bool is_of(const KeepStream& other, uint32_t other_threshold) const {
    return stream.seed == other.seed && stream.step == other.step && stream.param == other.param &&
           threshold == other_threshold;
  }
};
thread_local Drawn last;

constexpr int64_t kGiven = kTile;  // elements whose decisions go through a buffer at a time
constexpr int64_t kLongRun = kTile;
alignas(64) thread_local int32_t given[kGiven];  // not on the stack, which may be small

// The decisions of `count` elements of one tile, from `place` in it on: only the calls that they need.
template <class Isa>
void decide_piece(Drawn& drawn, int64_t tile, int64_t place, int64_t count, int32_t* keeps) {
  if (drawn.tile != tile) {
    drawn.tile = tile;
    drawn.lanes = 0;
  }
  constexpr uint64_t kPieceBits = (uint64_t{1} << kPiece) - 1;
  const int64_t first = place % kLanes, end = first + std::min(count, kLanes);
  for (int64_t lane = first - first % kPiece; lane < end && ~drawn.lanes; lane += kPiece) {
    const int own = static_cast<int>(lane % kLanes);
    if (drawn.lanes >> own & 1) continue;
    draw_piece<Isa>(drawn.stream, drawn.threshold, tile, own, drawn.keeps);
    drawn.lanes |= kPieceBits << own;
  }
  std::memcpy(keeps, drawn.keeps.row[0] + place, count * sizeof(int32_t));
}

}  // namespace

template <class Isa>
void decide_shard(const ListStep& list, const TensorWork& tensor, int64_t first, int64_t count, int32_t* keeps) {
  const IndexMap& map = tensor.map;
  Drawn& drawn = last;
  const KeepStream stream = keep_stream(list, tensor.step);
  if (!drawn.is_of(stream, list.threshold)) {
    drawn.stream = stream;
    drawn.threshold = list.threshold;
    drawn.tile = -1;
  }
  int64_t run = first / map.run, place = first % map.run;
  for (int64_t done = 0; done < count; ++run, place = 0) {
    int64_t element = map.base + run * map.pitch + place;
    const int64_t end = std::min(count, done + map.run - place);
    while (done < end) {
      const int64_t piece = std::min(end - done, kTile - element % kTile);
      decide_piece<Isa>(drawn, element / kTile, element % kTile, piece, keeps + done);
      element += piece;
      done += piece;
    }
  }
}

// From where a run meets a tile of the whole parameter on, its elements are a range as any other, whose draws are made
// while it is stepped. What comes before goes through a buffer, as all of runs that are too short for this.
template <class Isa>
void step_shard(const ListStep& list, const TensorWork& tensor, int64_t first, int64_t count) {
  const IndexMap& map = tensor.map;
  const auto step_given = [&](int64_t begin, int64_t end) {
    for (; begin < end; begin += kGiven) {
      Range part = tensor.part(begin, std::min(end - begin, kGiven));
      decide_shard<Isa>(list, tensor, begin, part.count, given);
      part.keeps = given;
      tensor.kernel(list, tensor.step, part);
    }
  };
  const int64_t end = first + count;
  if (map.run < kLongRun) return step_given(first, end);
  for (int64_t stretch_end; first < end; first = stretch_end) {
    const int64_t place = first % map.run, element = map.base + first / map.run * map.pitch + place;
    stretch_end = std::min(end, first + map.run - place);
    const int64_t met = std::min(stretch_end, first + (kTile - element % kTile) % kTile);
    step_given(first, met);
    if (met == stretch_end) continue;
    Range part = tensor.part(met, stretch_end - met);
    part.first_tile = (element + met - first) / kTile;
    tensor.kernel(list, tensor.step, part);
  }
}

template void decide_shard<LRT_ISA>(const ListStep&, const TensorWork&, int64_t, int64_t, int32_t*);
template void step_shard<LRT_ISA>(const ListStep&, const TensorWork&, int64_t, int64_t);

}  // namespace lrt::cpu
