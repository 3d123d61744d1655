// Runs every C++ test of csrc, or those whose case name contains the first argument; exit status 1 if one fails, or
// none is so named. A second and third argument: part I of N of these cases, from 0. Built by tests/cpp/Makefile
// without torch, under AddressSanitizer and UBSan unless MODE=release.
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "check.h"
#include "variants.h"

namespace lrt::test {
namespace {

int named = 0, passed = 0, failed = 0;
int part = 0, parts = 1, groups = 0;
std::string wanted, last_group;

// Whether this process runs the case. Those whose names are alike but for what follows the last comma, an instruction
// set in most, stay together, for they need the same.
bool is_ours(const std::string& name) {
  const std::string group = name.substr(0, name.rfind(','));
  if (group != last_group) ++groups;
  last_group = group;
  return groups % parts == part;
}

}  // namespace

void run_case(const std::string& name, const std::function<void()>& body) {
  if (name.find(wanted) == std::string::npos) return;
  ++named;
  if (!is_ours(name)) return;
  try {
    body();
    ++passed;
  } catch (const std::exception& error) {
    ++failed;
    std::printf("FAILED %s: %s\n", name.c_str(), error.what());
  }
}

}  // namespace lrt::test

int main(int argc, char** argv) {
  using namespace lrt::test;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  if (argc > 1) wanted = argv[1];
  if (argc > 3) part = std::atoi(argv[2]), parts = std::atoi(argv[3]);
  std::printf("instruction sets:");
  for (const lrt::cpu::Isa isa : available_isas()) std::printf(" %s", lrt::cpu::isa_name(isa));
  std::printf("\n");
  test_bits();
  test_dtype();
  test_strided();
  test_lists();
  test_strided_lists();
  test_formulas();
  test_squares();
  test_stage();
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0 || named == 0;
}
