// Channel: a watched socket, with what it has not taken yet.
#include "channel.h"

#include <utility>

namespace lane {

Channel::Channel(Epoll& epoll, Buffers& buffers, std::uint64_t key, std::unique_ptr<Wire> wire)
    : epoll_(epoll), buffers_(buffers), key_(key), wire_(std::move(wire)), watched_(EPOLLIN) {
  epoll_.add(wire_->fd(), key_, watched_);
}

// Not by closing alone: a process that was forked meanwhile may have the socket, too.
Channel::~Channel() { epoll_.remove(wire_->fd()); }

ssize_t Channel::read() { return wire_->read(buffers_.input.data(), buffers_.input.size()); }

void Channel::watch(bool reads) {
  const bool writes = full_ || wire_->wants_write();
  const std::uint32_t wanted = (reads ? EPOLLIN : 0u) | (writes ? EPOLLOUT : 0u);
  if (wanted == watched_) return;
  epoll_.change(wire_->fd(), key_, wanted);
  watched_ = wanted;
}

// Writes all that is unsent; false where the socket does not take it.
bool Channel::write(Seconds now) {
  std::size_t sent = 0;
  while (sent < unsent_.size()) {
    const ssize_t count = wire_->write(unsent_.data() + sent, unsent_.size() - sent);
    if (count <= 0) {
      broken_ = count == Wire::broken;
      full_ = true;
      break;
    }
    sent += static_cast<std::size_t>(count);
  }
  took_ = took_ || sent > 0;
  if (sent > 0) progress_ = now;
  unsent_.erase(0, sent);
  return !full_;
}

void Channel::borrow(Seconds now) {
  took_ = false;
  if (!unsent_.empty()) return;
  unsent_.swap(buffers_.output);
  progress_ = now;
}

void Channel::give_back() {
  if (!unsent_.empty()) return;
  if (buffers_.output.capacity() < unsent_.capacity()) unsent_.swap(buffers_.output);
  unsent_ = std::string();
}

}  // namespace lane
