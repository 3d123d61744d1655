// Draws of one instruction set, named by the build (-DLRT_ISA=Avx512, Avx2 or Baseline).
// Called by test_bits.cpp.
#include "draws.h"

namespace lrt::test {

template <>
void draw_whole_tile<cpu::LRT_ISA>(const KeepStream& key, uint32_t threshold, int64_t tile, cpu::TileKeeps& keeps) {
  cpu::decide_tile<cpu::LRT_ISA>(key, threshold, tile, keeps);
}

template <>
int draw_one_piece<cpu::LRT_ISA>(const KeepStream& key, uint32_t threshold, int64_t tile, int lane,
                                 cpu::TileKeeps& keeps) {
  cpu::draw_piece<cpu::LRT_ISA>(key, threshold, tile, lane, keeps);
  return cpu::kPiece;
}

}  // namespace lrt::test
