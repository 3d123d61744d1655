// How the native library refuses what it is given. The text is all that a user sees: no file of the build stands in it,
// as it does in the texts of torch's own macros.
#pragma once

#include <sstream>
#include <stdexcept>

namespace lrt {

template <class... Parts>
[[noreturn, gnu::noinline, gnu::cold]] void refuse(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::runtime_error(text.str());
}

// Raises RuntimeError with the text of `parts` unless the condition holds.
template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (!holds) [[unlikely]]
    refuse(parts...);
}

}  // namespace lrt
