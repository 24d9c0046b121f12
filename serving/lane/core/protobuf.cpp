// Reading protocol buffers, with every length checked before it is believed.
#include "protobuf.h"

#include <cstring>
#include <limits>

namespace lane {
namespace {

constexpr int kMostVarintBytes = 10;  // of 64 bits
constexpr int kMostTagBytes = 5;      // of 32 bits

constexpr std::uint64_t kHighBits = 0x8080808080808080;

// How many bytes lead a character of several, by its first; 0 for one that leads none.
int continuations(unsigned char lead) {
  if (lead >= 0xc2 && lead <= 0xdf) return 1;
  if (lead >= 0xe0 && lead <= 0xef) return 2;
  if (lead >= 0xf0 && lead <= 0xf4) return 3;
  return 0;
}

// What the second byte may be is narrower for some leads: RFC 3629, section 4.
bool second_fits(unsigned char lead, unsigned char second) {
  const unsigned char low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  return second >= low && second <= high;
}

// Bytes of the character at the front, 0 where it is none; `text` is not empty.
std::size_t character(std::string_view text) {
  const auto lead = static_cast<unsigned char>(text[0]);
  if (lead < 0x80) return 1;
  const int more = continuations(lead);
  if (more == 0 || text.size() <= static_cast<std::size_t>(more)) return 0;
  if (!second_fits(lead, static_cast<unsigned char>(text[1]))) return 0;
  for (int index = 2; index <= more; ++index) {
    if ((static_cast<unsigned char>(text[index]) & 0xc0) != 0x80) return 0;
  }
  return static_cast<std::size_t>(more) + 1;
}

}  // namespace

bool valid_utf8(std::string_view text) {
  while (!text.empty()) {
    std::uint64_t eight = 0;
    if (text.size() >= sizeof eight) {
      std::memcpy(&eight, text.data(), sizeof eight);
      if ((eight & kHighBits) == 0) {
        text.remove_prefix(sizeof eight);
        continue;
      }
    }
    const std::size_t bytes = character(text);
    if (bytes == 0) return false;
    text.remove_prefix(bytes);
  }
  return true;
}

bool Reader::varint(std::uint64_t& value, int most_bytes) {
  value = 0;
  for (int index = 0; index < most_bytes && at_ != end_; ++index) {
    const auto byte = static_cast<unsigned char>(*at_++);
    value |= static_cast<std::uint64_t>(byte & 0x7f) << (7 * index);
    // The tenth byte has room for one bit only.
    if (byte < 0x80) return index < kMostVarintBytes - 1 || byte <= 1;
  }
  return false;
}

bool Reader::varint(std::uint64_t& value) { return varint(value, kMostVarintBytes); }

bool Reader::tag(std::uint32_t& tag) {
  std::uint64_t value = 0;
  if (!varint(value, kMostTagBytes)) return false;
  if (value > std::numeric_limits<std::uint32_t>::max()) return false;
  tag = static_cast<std::uint32_t>(value);
  return tag >> 3 != 0;
}

bool Reader::bytes(std::string_view& value) {
  std::uint64_t size = 0;
  if (!varint(size) || size > static_cast<std::size_t>(end_ - at_)) return false;
  value = std::string_view(at_, size);
  at_ += size;
  return true;
}

bool Reader::skip(std::uint32_t tag) {
  std::uint64_t number = 0;
  std::string_view unread;
  const std::size_t left = static_cast<std::size_t>(end_ - at_);
  const std::size_t fixed = (tag & 7) == 1 ? 8 : (tag & 7) == 5 ? 4 : 0;
  switch (tag & 7) {
    case 0: return varint(number);
    case 2: return bytes(unread);
    case 1:
    case 5:
      if (left < fixed) return false;
      at_ += fixed;
      return true;
    default: return false;
  }
}

}  // namespace lane
