// Words from the host into device memory by way of kernel arguments: no staging buffer that could be reused too early,
// no synchronisation, and a graph that captures the launch captures the words.
#pragma once

#include <cstdint>

namespace lrt::cuda {

// Writes words[0 .. count) to `target` on `stream`. Returns the error's text, or null.
const char* upload(int64_t* target, const int64_t* words, int64_t count, void* stream);

}  // namespace lrt::cuda
