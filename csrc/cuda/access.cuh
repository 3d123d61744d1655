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

template <class T>
LRT_DEVICE int64_t address_of(int64_t base, int64_t element) {
  return base + element * static_cast<int64_t>(sizeof(T));
}

template <class T, int kCount>
LRT_DEVICE Vector<T, kCount>& vector_at(int64_t base, int64_t element) {
  T* const address = reinterpret_cast<T*>(address_of<T>(base, element));
#if defined(__CUDA_ARCH__)
  __builtin_assume(__isGlobal(address));  // an integer does not say so, and sm_100 would use generic accesses
#endif
  return *reinterpret_cast<Vector<T, kCount>*>(address);
}

// Writes a piece of a vector in one access. Left to it, the compiler takes some vectors apart, and joins the branches
// of AnyAccess, which write the same values to the same addresses, element by element.
template <class T, int kPiece>
LRT_DEVICE void store_piece(int64_t base, int64_t element, const Vector<T, kPiece>& piece) {
  Vector<T, kPiece>& target = vector_at<T, kPiece>(base, element);
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(piece) >= 8) {
    uint32_t words[sizeof(piece) / 4];
    memcpy(words, &piece, sizeof(piece));
    if constexpr (sizeof(piece) == 8) {
      asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(&target), "r"(words[0]), "r"(words[1]) : "memory");
    } else {
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(&target), "r"(words[0]), "r"(words[1]),
                   "r"(words[2]), "r"(words[3])
                   : "memory");
    }
    return;
  }
#endif
  target = piece;
}

// A vector in pieces of so many elements each.
template <int kPiece, class T, int kCount>
LRT_DEVICE Vector<T, kCount> load_pieces(int64_t base, int64_t element) {
  Vector<T, kCount> vector;
#pragma unroll
  for (int first = 0; first < kCount; first += kPiece) {
    const Vector<T, kPiece> piece = vector_at<T, kPiece>(base, element + first);
#pragma unroll
    for (int e = 0; e < kPiece; ++e) vector.value[first + e] = piece.value[e];
  }
  return vector;
}
template <int kPiece, class T, int kCount>
LRT_DEVICE void store_pieces(int64_t base, int64_t element, const Vector<T, kCount>& vector) {
#pragma unroll
  for (int first = 0; first < kCount; first += kPiece) {
    Vector<T, kPiece> piece;
#pragma unroll
    for (int e = 0; e < kPiece; ++e) piece.value[e] = vector.value[first + e];
    store_piece(base, element + first, piece);
  }
}

// Elements of the widest piece of a vector.
template <class T, int kCount>
constexpr int kWidest = kAccess / static_cast<int>(sizeof(T)) < kCount ? kAccess / static_cast<int>(sizeof(T)) : kCount;

// Vectors at addresses that are multiples of kAccess, or of a vector's size where that is less.
struct AlignedAccess {
  template <class T, int kCount>
  LRT_DEVICE Vector<T, kCount> load(int64_t base, int64_t element) {
    return load_pieces<kWidest<T, kCount>, T, kCount>(base, element);
  }
  template <class T, int kCount>
  LRT_DEVICE void store(int64_t base, int64_t element, const Vector<T, kCount>& vector) {
    store_pieces<kWidest<T, kCount>>(base, element, vector);
  }
};

// Vectors anywhere, each in the widest accesses that its address allows. The threads of a block take the same branch:
// what they access is multiples of kAccess apart.
struct AnyAccess {
  template <class T, int kCount>
  LRT_DEVICE Vector<T, kCount> load(int64_t base, int64_t element) {
    Vector<T, kCount> vector;
    in_pieces<kWidest<T, kCount>, T>(address_of<T>(base, element),
                                     [&]<int kPiece>() { vector = load_pieces<kPiece, T, kCount>(base, element); });
    return vector;
  }
  template <class T, int kCount>
  LRT_DEVICE void store(int64_t base, int64_t element, const Vector<T, kCount>& vector) {
    in_pieces<kWidest<T, kCount>, T>(address_of<T>(base, element),
                                     [&]<int kPiece>() { store_pieces<kPiece>(base, element, vector); });
  }

 private:
  // Calls move.operator()<elements of a piece>() with the most that the address allows.
  template <int kPiece, class T, class Move>
  LRT_DEVICE void in_pieces(int64_t address, const Move& move) {
    if constexpr (kPiece == 1) {
      move.template operator()<1>();
    } else if (address % (kPiece * static_cast<int64_t>(sizeof(T))) == 0) {
      move.template operator()<kPiece>();
    } else {
      in_pieces<kPiece / 2, T>(address, move);
    }
  }
};

}  // namespace lrt::cuda
