// Collects a call's message. See message_buffer.h.
#include "message_buffer.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace lane {
namespace {

// A message's memory before it came, at most: a claim must cost its sender something.
constexpr std::size_t most_reserved = std::size_t{1} << 20;

}  // namespace

void MessageBuffer::clear() {
  prefix_size_ = 0;
  message_ = std::string();
}

MessageBuffer::Arrived MessageBuffer::add(std::string_view bytes, std::size_t most) {
  const std::size_t head = std::min(bytes.size(), prefix_bytes - prefix_size_);
  std::memcpy(prefix_.data() + prefix_size_, bytes.data(), head);
  prefix_size_ += head;
  bytes.remove_prefix(head);
  if (prefix_size_ < prefix_bytes) return Arrived::part;
  const bool compressed = prefix_[0] != 0;
  const std::size_t length = announced();
  if (!compressed && length > most) return Arrived::too_large;
  if (message_.empty()) message_.reserve(std::min({length, most, most_reserved}));
  message_.append(bytes);
  if (compressed || message_.size() > length) return Arrived::other;
  return message_.size() == length ? Arrived::whole : Arrived::part;
}

std::uint32_t MessageBuffer::announced() const {
  if (prefix_size_ < prefix_bytes) return 0;
  std::uint32_t length = 0;
  for (std::size_t i = 1; i < prefix_bytes; ++i) {
    length = length << 8 | static_cast<std::uint8_t>(prefix_[i]);
  }
  return length;
}

std::string MessageBuffer::take_message() {
  prefix_size_ = 0;
  return std::exchange(message_, std::string());
}

std::string MessageBuffer::take_all() {
  std::string all(prefix_.data(), prefix_size_);
  return all + take_message();
}

}  // namespace lane
