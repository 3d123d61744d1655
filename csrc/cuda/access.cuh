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

// One access to global memory, of 1 to 16 bytes; of an integer the compiler does not know where it points, and would
// use generic accesses. Volatile: the compiler takes some vectors apart, and joins the branches of AnyAccess, which
// move the same elements of the same addresses, element by element.
#if defined(__CUDA_ARCH__)
template <size_t kSize>
struct Words {
  uint32_t value[kSize < 4 ? 1 : kSize / 4];
};
template <size_t kSize>
LRT_DEVICE void load_words(Words<kSize>& to, int64_t from) {
  uint32_t* const v = to.value;
  if constexpr (kSize == 16) {
    asm volatile("ld.global.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "l"(from));
  } else if constexpr (kSize == 8) {
    asm volatile("ld.global.v2.b32 {%0, %1}, [%2];" : "=r"(v[0]), "=r"(v[1]) : "l"(from));
  } else if constexpr (kSize == 4) {
    asm volatile("ld.global.b32 %0, [%1];" : "=r"(v[0]) : "l"(from));
  } else if constexpr (kSize == 2) {
    asm volatile("ld.global.u16 %0, [%1];" : "=r"(v[0]) : "l"(from));
  } else {
    asm volatile("ld.global.u8 %0, [%1];" : "=r"(v[0]) : "l"(from));
  }
}
template <size_t kSize>
LRT_DEVICE void store_words(int64_t to, const Words<kSize>& from) {
  const uint32_t* const v = from.value;
  if constexpr (kSize == 16) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
                 : "memory");
  } else if constexpr (kSize == 8) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(v[0]), "r"(v[1]) : "memory");
  } else if constexpr (kSize == 4) {
    asm volatile("st.global.b32 [%0], %1;" ::"l"(to), "r"(v[0]) : "memory");
  } else if constexpr (kSize == 2) {
    asm volatile("st.global.u16 [%0], %1;" ::"l"(to), "r"(v[0]) : "memory");
  } else {
    asm volatile("st.global.u8 [%0], %1;" ::"l"(to), "r"(v[0]) : "memory");
  }
}
#endif

// A piece of a vector, by one access.
template <class T, int kPiece>
LRT_DEVICE Vector<T, kPiece> load_piece(int64_t base, int64_t element) {
  Vector<T, kPiece> piece;
#if defined(__CUDA_ARCH__)
  Words<sizeof(piece)> words;
  load_words(words, address_of<T>(base, element));
  memcpy(&piece, &words, sizeof(piece));
#else
  piece = *reinterpret_cast<const Vector<T, kPiece>*>(address_of<T>(base, element));
#endif
  return piece;
}
template <class T, int kPiece>
LRT_DEVICE void store_piece(int64_t base, int64_t element, const Vector<T, kPiece>& piece) {
#if defined(__CUDA_ARCH__)
  Words<sizeof(piece)> words = {};
  memcpy(&words, &piece, sizeof(piece));
  store_words(address_of<T>(base, element), words);
#else
  *reinterpret_cast<Vector<T, kPiece>*>(address_of<T>(base, element)) = piece;
#endif
}

// A vector in pieces of so many elements each.
template <int kPiece, class T, int kCount>
LRT_DEVICE Vector<T, kCount> load_pieces(int64_t base, int64_t element) {
  Vector<T, kCount> vector;
#pragma unroll
  for (int first = 0; first < kCount; first += kPiece) {
    const Vector<T, kPiece> piece = load_piece<T, kPiece>(base, element + first);
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
  using OfGradients = AlignedAccess;
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
  using OfGradients = AnyAccess;
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

// All but the gradients at such multiples: gradients are views into buckets oftener than anything else is.
struct AlignedButGradients : AlignedAccess {
  using OfGradients = AnyAccess;
};

}  // namespace lrt::cuda
