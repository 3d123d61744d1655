// The draws of one instruction set behind ordinary functions; draws.cpp is compiled once per set.
// As for the kernels, that file includes nothing else: it must emit no function that others could be linked to.
#pragma once

#include "cpu/lanes.h"

namespace lrt::test {

template <class Isa>
void draw_whole_tile(const KeepStream& key, uint32_t threshold, int64_t tile, cpu::TileKeeps& keeps);

// Draws one piece from `lane` on; returns how many calls a piece is.
template <class Isa>
int draw_one_piece(const KeepStream& key, uint32_t threshold, int64_t tile, int lane, cpu::TileKeeps& keeps);

}  // namespace lrt::test
