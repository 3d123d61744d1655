// Words from the host into device memory by way of kernel arguments: no staging buffer that could be reused too early,
// no synchronisation, and a graph that captures the launch captures the words.
#pragma once

#include <cstdint>

namespace lrt::cuda {

// The CUDA toolkit this was compiled with, as the driver numbers its own: 13000 is 13.0.
int toolkit_version();

// Makes `device` current for this library's own copy of the CUDA runtime, which torch's guard need not reach.
// Returns the error's text, or null.
const char* use_device(int device);

// Writes words[0 .. count) to `target`, `pitch` words apart, on `stream`. Returns the error's text, or null.
const char* upload(int64_t* target, int64_t pitch, const int64_t* words, int64_t count, void* stream);

}  // namespace lrt::cuda
