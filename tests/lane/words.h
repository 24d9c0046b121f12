// The words that make_vectors.py writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace lane {

inline std::vector<std::byte> from_hex(const std::string& hex) {
  std::vector<std::byte> bytes;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<std::byte>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  }
  return bytes;
}

inline double double_of(const std::string& bits) {
  const std::uint64_t number = std::stoull(bits, nullptr, 16);
  double value;
  std::memcpy(&value, &number, sizeof value);
  return value;
}

inline std::string name_of(const std::string& word) { return word == "-" ? "" : word; }

}  // namespace lane
