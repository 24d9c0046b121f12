// A call's state. See stream.h.
#include "stream.h"

#include <algorithm>
#include <cstring>

namespace lane {
namespace {

// What was sent is dropped when it is as much as this: not at each frame, nor only at the end.
constexpr std::size_t compact_bytes = 64 * 1024;

}  // namespace

void Output::append(std::string_view more) {
  if (sent == bytes.size()) {
    bytes.clear();
    sent = 0;
  } else if (sent >= compact_bytes) {
    bytes.erase(0, sent);
    sent = 0;
  }
  bytes.append(more);
}

std::size_t Output::take(std::uint8_t* to, std::size_t most) {
  const std::size_t count = std::min(most, size());
  std::memcpy(to, bytes.data() + sent, count);
  sent += count;
  return count;
}

void Stream::begin(std::int32_t number, Seconds now) {
  id = number;
  arrived = now;
}

void Stream::reset() {
  id = 0;
  role = Role::headers;
  deadline = std::numeric_limits<Seconds>::infinity();
  headers.clear();
  body.clear();
  call.reset();
  out = Output();
  request_ended = response_begun = upstream_done = infer = counted = false;
  buffered = reserved = unsent = withheld = unconsumed = consumed = 0;
}

std::size_t Stream::consumed_before(std::size_t bytes) {
  const std::size_t part = std::min(bytes, consumed);
  consumed -= part;
  return part;
}

void StreamList::append(Stream& stream) {
  remove(stream);
  stream.list = this;
  stream.before = back_;
  (back_ ? back_->after : front_) = &stream;
  back_ = &stream;
}

void StreamList::remove(Stream& stream) {
  if (!stream.list) return;
  StreamList& list = *stream.list;
  (stream.before ? stream.before->after : list.front_) = stream.after;
  (stream.after ? stream.after->before : list.back_) = stream.before;
  stream.before = stream.after = nullptr;
  stream.list = nullptr;
}

}  // namespace lane
