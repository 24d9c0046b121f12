// The sizes of V2's datatypes, as serving/datatypes.py has them.
#include "layout.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace lane {
namespace {

struct Size {
  std::string_view datatype;
  std::size_t bytes;
};

constexpr std::array<Size, 12> kSizes{{
    {"BOOL", 1}, {"INT8", 1}, {"INT16", 2}, {"INT32", 4}, {"INT64", 8}, {"UINT8", 1},
    {"UINT16", 2}, {"UINT32", 4}, {"UINT64", 8}, {"FP16", 2}, {"FP32", 4}, {"FP64", 8},
}};

}  // namespace

std::size_t element_bytes(const std::string& datatype) {
  const auto known = std::find_if(kSizes.begin(), kSizes.end(),
                                  [&](const Size& size) { return size.datatype == datatype; });
  return known == kSizes.end() ? 0 : known->bytes;
}

}  // namespace lane
