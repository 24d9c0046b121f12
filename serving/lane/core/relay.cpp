// Relay: a client's socket to grpcio's server.
#include "relay.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <system_error>
#include <utility>

namespace lane {
namespace {

// While grpcio's server has more to accept than its backlog holds, which a Unix socket does not
// wait for: how often to try, and for how long, in seconds.
constexpr Seconds try_again = 0.01;
constexpr Seconds patience = 2;

}  // namespace

Relay::Relay(Epoll& epoll, Buffers& buffers, std::uint64_t key, const std::string& path,
             Downstream& downstream, std::function<void()> output, Seconds now)
    : epoll_(epoll),
      buffers_(buffers),
      key_(key),
      path_(path),
      made_(now),
      upstream_(downstream, std::move(output)) {
  connect();
}

void Relay::connect() {
  Descriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path_.copy(address.sun_path, sizeof address.sun_path - 1);
  const auto* where = reinterpret_cast<const sockaddr*>(&address);
  if (!socket || ::connect(socket.get(), where, sizeof address) != 0) {
    lost_ = errno != EAGAIN;
    return;
  }
  try {
    channel_.emplace(epoll_, buffers_, key_, plain_wire(std::move(socket)));
  } catch (const std::system_error&) {  // a connection's callback is no place to throw from
    lost_ = true;
  }
}

void Relay::ready(std::uint32_t events) {
  if (lost_ || !channel_) return;
  if (events & EPOLLOUT) channel_->writable();
  // What grpcio's server sent before it closed comes first.
  if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) read();
}

void Relay::read() {
  const ssize_t count = channel_->read();
  if (count == Wire::again) return;
  lost_ = count <= 0 ||
          !upstream_.receive(buffers_.input.data(), static_cast<std::size_t>(count));
}

bool Relay::flush(Seconds now) {
  if (lost_ || !channel_) return false;
  const bool more = !channel_->congested() && channel_->send(upstream_, now);
  lost_ = channel_->broken();
  channel_->watch(true);
  return more;
}

Seconds Relay::tick(Seconds now) {
  if (lost_ || channel_) return never;
  connect();
  lost_ = lost_ || (!channel_ && now > made_ + patience);
  return lost_ || channel_ ? now : now + try_again;
}

}  // namespace lane
