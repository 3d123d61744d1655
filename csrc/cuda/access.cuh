// How a thread moves neighbouring elements of one operand. Addresses are integers, as a table holds them.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace lrt::cuda {

constexpr int kAccess = 16;  // bytes of one access, and of a unit of lanes (core/slope.h)

// kCount elements in as few accesses as their size allows.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount < kAccess ? sizeof(T) * kCount : kAccess) Vector {
  T value[kCount];
};

template <class T, int kCount>
LRT_DEVICE Vector<T, kCount>& vector_at(int64_t base, int64_t element) {
  T* const address = reinterpret_cast<T*>(base) + element;
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(address));  // an integer does not say so, and sm_100 would use generic accesses
#endif
  return *reinterpret_cast<Vector<T, kCount>*>(address);
}

// Vectors at addresses that are multiples of kAccess, or of a vector's size where that is less.
struct AlignedAccess {
  template <class T, int kCount>
  LRT_DEVICE Vector<T, kCount> load(int64_t base, int64_t element) {
    return vector_at<T, kCount>(base, element);
  }
  template <class T, int kCount>
  LRT_DEVICE void store(int64_t base, int64_t element, const Vector<T, kCount>& vector) {
    vector_at<T, kCount>(base, element) = vector;
  }
};

// Vectors anywhere, each in the widest accesses that its address allows. The threads of a block take the same branch:
// what they access is multiples of kAccess apart.
struct AnyAccess {
  template <class T, int kCount>
  LRT_DEVICE Vector<T, kCount> load(int64_t base, int64_t element) {
    Vector<T, kCount> vector;
    in_pieces<T, kCount>(base + element * static_cast<int64_t>(sizeof(T)), [&]<int kPiece>() {
#pragma unroll
      for (int first = 0; first < kCount; first += kPiece) {
        const Vector<T, kPiece> piece = vector_at<T, kPiece>(base, element + first);
#pragma unroll
        for (int e = 0; e < kPiece; ++e) vector.value[first + e] = piece.value[e];
      }
    });
    return vector;
  }
  template <class T, int kCount>
  LRT_DEVICE void store(int64_t base, int64_t element, const Vector<T, kCount>& vector) {
    in_pieces<T, kCount>(base + element * static_cast<int64_t>(sizeof(T)), [&]<int kPiece>() {
#pragma unroll
      for (int first = 0; first < kCount; first += kPiece) {
        Vector<T, kPiece> piece;
#pragma unroll
        for (int e = 0; e < kPiece; ++e) piece.value[e] = vector.value[first + e];
        vector_at<T, kPiece>(base, element + first) = piece;
      }
    });
  }

 private:
  // Calls move.operator()<elements of a piece>().
  template <class T, int kCount, int kBytes = kAccess, class Move>
  LRT_DEVICE void in_pieces(int64_t address, const Move& move) {
    constexpr int kPiece = kBytes / static_cast<int>(sizeof(T));
    if constexpr (kPiece > kCount) {
      in_pieces<T, kCount, kBytes / 2>(address, move);
    } else if (kPiece == 1 || address % kBytes == 0) {
      move.template operator()<kPiece>();
    } else if constexpr (kPiece > 1) {
      in_pieces<T, kCount, kBytes / 2>(address, move);
    }
  }
};

}  // namespace lrt::cuda
