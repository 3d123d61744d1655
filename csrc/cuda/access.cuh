// How a thread moves neighbouring elements of one operand. Addresses are integers, as a table holds them.
#pragma once

#include <cstdint>
#include <cstring>

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

// Writes whole vectors of 8 and 16 bytes in one access. Left to it, the compiler finds that the branches of AnyAccess
// write the same values to the same addresses, and joins them element by element.
template <class T, int kCount>
LRT_DEVICE void store_whole(Vector<T, kCount>& target, const Vector<T, kCount>& piece) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(piece) == 16) {
    uint32_t words[4];
    memcpy(words, &piece, sizeof(piece));
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(&target), "r"(words[0]), "r"(words[1]), "r"(words[2]),
                 "r"(words[3])
                 : "memory");
    return;
  } else if constexpr (sizeof(piece) == 8) {
    uint32_t words[2];
    memcpy(words, &piece, sizeof(piece));
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(&target), "r"(words[0]), "r"(words[1]) : "memory");
    return;
  }
#endif
  target = piece;
}

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
        store_whole(vector_at<T, kPiece>(base, element + first), piece);
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
