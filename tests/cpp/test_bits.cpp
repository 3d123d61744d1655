// Random bits and per-step scalars: Philox and keep bits against published known answers, every instruction set's
// draws against the scalar generator, the keep threshold's edges, powers against std::pow.
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "core/keep.h"
#include "draws.h"
#include "variants.h"

namespace lrt::test {
namespace {

using Words = std::array<uint32_t, 4>;

struct PhiloxAnswer {
  Words counter;
  std::array<uint32_t, 2> key;
  Words seven_rounds, ten_rounds;
};

// Random123's kat_vectors.
constexpr PhiloxAnswer kPhiloxAnswers[] = {{{0, 0, 0, 0},
                                            {0, 0},
                                            {0x5f6fb709, 0x0d893f64, 0x4f121f81, 0x4f730a48},
                                            {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
                                           {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
                                            {0xffffffff, 0xffffffff},
                                            {0x5207ddc2, 0x45165e59, 0x4d8ee751, 0x8c52f662},
                                            {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
                                           {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
                                            {0xa4093822, 0x299f31d0},
                                            {0x4dfccaba, 0x190a87f0, 0xc47362ba, 0xb6b5242a},
                                            {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};

// Design, section 4: the 16 bits of eight consecutive elements.
struct KeepAnswer {
  KeepStream key;
  int64_t first;
  uint32_t bits[8];
};
constexpr KeepAnswer kKeepAnswers[] = {
    {{0, 1, 0}, 0, {0x1a9a, 0xef7a, 0xb99a, 0x1ccb, 0xfa5f, 0x8561, 0xfed8, 0x563d}},
    {{0, 1, 0}, 64, {0x1a38, 0xea29, 0x190c, 0xb1ab, 0xb7aa, 0xbaea, 0xc7d2, 0xd31f}},
    {{0x123456789abcdef0u, 7, 3}, 1000, {0xfe15, 0xff94, 0xe314, 0x9bd8, 0xca9e, 0xe953, 0xfd2a, 0xdb96}}};

void philox_answers() {
  for (const PhiloxAnswer& answer : kPhiloxAnswers) {
    const Words& c = answer.counter;
    const PhiloxBlock<uint32_t> counter = {{c[0], c[1], c[2], c[3]}};
    const auto seven = philox4x32<7>(counter, answer.key[0], answer.key[1]);
    const auto ten = philox4x32<10>(counter, answer.key[0], answer.key[1]);
    const cpu::PhiloxCommon common({c[1], c[2], c[3]}, answer.key[0], answer.key[1]);
    const auto common_seven = common.block<7>(c[0]), common_ten = common.block<10>(c[0]);
    for (int w = 0; w < 4; ++w) {
      require(seven.word[w] == answer.seven_rounds[w], "7 rounds, word ", w, ": ", seven.word[w]);
      require(ten.word[w] == answer.ten_rounds[w], "10 rounds, word ", w, ": ", ten.word[w]);
      require(common_seven.word[w] == answer.seven_rounds[w], "7 rounds, in common, word ", w);
      require(common_ten.word[w] == answer.ten_rounds[w], "10 rounds, in common, word ", w);
    }
  }
}

void keep_answers() {
  for (const KeepAnswer& answer : kKeepAnswers) {
    for (int i = 0; i < 8; ++i) {
      const uint32_t bits = keep_bits(answer.key, answer.first + i);
      require(bits == answer.bits[i], "element ", answer.first + i, ": ", bits, " not ", answer.bits[i]);
    }
  }
}

void kept_of_a_million(const KeepStream& key, double keep_prob, int expected) {
  const uint32_t threshold = keep_threshold(keep_prob);
  int kept = 0;
  for (int64_t i = 0; i < 1000000; ++i) kept += keep_bits(key, i) < threshold;
  require(kept == expected, kept, " kept, not ", expected);
}

bool kept(const cpu::TileKeeps& keeps, int64_t element) {
  return keeps.row[element / kLanes % 8][element % kLanes] < 0;
}

// A draw is exactly `bits` if it is kept below bits + 1 and not below bits.
template <class Isa>
void tile_answers() {
  for (const KeepAnswer& answer : kKeepAnswers) {
    for (int i = 0; i < 8; ++i) {
      const int64_t element = answer.first + i;
      cpu::TileKeeps keeps;
      for (const uint32_t above : {0, 1}) {
        draw_whole_tile<Isa>(answer.key, answer.bits[i] + above, element / kTile, keeps);
        require(kept(keeps, element) == (above == 1), "element ", element, " with threshold bits + ", above);
      }
    }
  }
}

std::vector<KeepStream> sample_keys() {
  std::vector<KeepStream> keys = {{0, 1, 0}, {~uint64_t{0}, ~0u, ~0u}, {uint64_t{1} << 32, 0x80000000u, 1}};
  Random random = {17};
  for (int i = 0; i < 8; ++i) {
    keys.push_back({random.next(), static_cast<uint32_t>(random.next()), static_cast<uint32_t>(random.next())});
  }
  return keys;
}

// Around the tile whose first call is 2**32, and the last tile whose calls fit the counter's 56 bits.
constexpr int64_t kSampleTiles[] = {0,
                                    1,
                                    7,
                                    1000003,
                                    (int64_t{1} << 26) - 1,
                                    int64_t{1} << 26,
                                    (int64_t{1} << 26) + 1,
                                    (int64_t{1} << 40) + 12345,
                                    (int64_t{1} << 50) - 1};

constexpr uint32_t kSampleThresholds[] = {1, 0x7fff, 0x8000, 0x8001, 0xffff};
constexpr int kPoison = 0xcd;

// `keeps` holds the scalar decisions of calls [first, end) of the tile and is otherwise untouched.
void require_calls(const cpu::TileKeeps& keeps, const KeepStream& key, uint32_t threshold, int64_t tile, int first,
                   int end) {
  int32_t poison;
  memset(&poison, kPoison, sizeof(poison));
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int r = 0; r < 8; ++r) {
      const int32_t value = keeps.row[r][lane];
      const bool drawn = first <= lane && lane < end;
      const bool expected = keep_bits(key, tile * kTile + r * kLanes + lane) < threshold;
      require(drawn ? value != poison && (value < 0) == expected : value == poison, "seed ", key.seed, " tile ", tile,
              " lane ", lane, " row ", r, ": ", value);
    }
  }
}

template <class Isa>
void draws_match_scalar() {
  for (const KeepStream& key : sample_keys()) {
    for (const int64_t tile : kSampleTiles) {
      for (const uint32_t threshold : kSampleThresholds) {
        cpu::TileKeeps keeps;
        memset(&keeps, kPoison, sizeof(keeps));
        draw_whole_tile<Isa>(key, threshold, tile, keeps);
        require_calls(keeps, key, threshold, tile, 0, kLanes);
        for (int lane = 0, piece = 0; lane < kLanes; lane += piece) {
          memset(&keeps, kPoison, sizeof(keeps));
          piece = draw_one_piece<Isa>(key, threshold, tile, lane, keeps);
          require_calls(keeps, key, threshold, tile, lane, lane + piece);
        }
      }
    }
  }
}

void streams_differ() {
  const KeepStream key = {3, 5, 7};
  const uint64_t n = (uint64_t{0xabcdef} << 32) | 9;
  require(counter_high(n, Stream::kElement) == 0xabcdefu, "element stream");
  require(counter_high(n, Stream::kScalar) == 0x03abcdefu, "scalar stream");
  require(draw(key, n, Stream::kElement).word[0] != draw(key, n, Stream::kScalar).word[0], "same bits");
}

void threshold_edges() {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  const struct {
    double keep_prob;
    uint32_t threshold;
  } answers[] = {{0, 0},
                 {-0.0, 0},
                 {-1, 0},
                 {nan, 0},
                 {-inf, 0},
                 {5e-324, 1},
                 {1e-12, 1},
                 {0.5 / 65536, 1},
                 {1.5 / 65536, 2},
                 {2.5 / 65536, 2},
                 {0.3, 19661},
                 {0.5, 32768},
                 {1 - 1e-12, 65535},
                 {65534.5 / 65536, 65534},
                 {65535.5 / 65536, 65535},
                 {1 - 0x1p-53, 65535},
                 {1, kKeepAll},
                 {1.5, kKeepAll},
                 {inf, kKeepAll}};
  for (const auto& [keep_prob, threshold] : answers) {
    require(keep_threshold(keep_prob) == threshold, "keep_threshold(", keep_prob, ") = ", keep_threshold(keep_prob));
  }
  Random random = {23};
  for (int i = 0; i < 100000; ++i) {
    const double keep_prob = random.uniform();
    const double rounded = std::fmin(std::fmax(std::nearbyint(keep_prob * 65536), 1), 65535);
    require(keep_prob == 0 || keep_threshold(keep_prob) == rounded, "keep_threshold(", keep_prob, ")");
  }
}

void powers() {
  for (const double base : {0.0, 0.3, 0.5, 0.9, 0.95, 0.999, 0.9999, 0.99999, 1.0, 1.0001}) {
    for (const double exponent : {0., 1., 2., 3., 7., 64., 1000., 4095., 65537., 100000.}) {
      const double expected = std::pow(base, exponent), got = int_pow(base, exponent);
      const double error = std::fabs(got - expected);
      require(error <= 1e-10 * expected || (expected < 1e-300 && got < 1e-300), base, " ** ", exponent, " = ", got);
    }
  }
  for (const double exponent : {0x1p24 + 1, 0x1p32 + 1}) {  // no stall where a float or an int32 step would
    const double base = 1 - 0x1p-30, expected = std::pow(base, exponent);
    require(std::fabs(int_pow(base, exponent) - expected) <= 1e-6 * expected, base, " ** ", exponent);
  }
}

template <class Isa>
void draw_cases(const char* isa) {
  run_case(text("draws: known answers, ", isa), tile_answers<Isa>);
  run_case(text("draws: tiles and pieces equal scalar calls, ", isa), draws_match_scalar<Isa>);
}

}  // namespace

void test_bits() {
  run_case("philox: known answers", philox_answers);
  run_case("keep bits: known answers", keep_answers);
  run_case("keep bits: 1e6 elements, keep 0.3", [] { kept_of_a_million({0, 1, 0}, 0.3, 299985); });
  run_case("keep bits: 1e6 elements, keep 0.5", [] { kept_of_a_million({42, 1000, 17}, 0.5, 500529); });
  run_case("keep bits: streams", streams_differ);
  run_case("keep threshold: edges", threshold_edges);
  run_case("int_pow: against std::pow", powers);
  for (const cpu::Isa isa : available_isas()) {
    select_isa(isa);
    cpu::with_active_isa([&](auto tag) { draw_cases<decltype(tag)>(cpu::isa_name(isa)); });
  }
}

}  // namespace lrt::test
