// ServerOutbox, and how a server's caller gets one.
#include "outbox.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <system_error>
#include <utility>

#include "server.h"

namespace lane {

ServerOutbox::ServerOutbox() : event_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  if (!event_) throw std::system_error(errno, std::generic_category(), "eventfd");
}

void ServerOutbox::push(Finished finished) {
  std::lock_guard lock(mutex_);
  finished_.push_back(std::move(finished));
}

void ServerOutbox::flush() {
  if (told_.exchange(true)) return;
  // Nobody reads the event: each write is an edge, and the sum never comes near 2^64.
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(event_.get(), &one, sizeof one);
}

void ServerOutbox::take(std::vector<Finished>& taken) {
  // First: who pushes after the swap must find that the thread has not been told.
  if (!told_.exchange(false)) return;
  std::lock_guard lock(mutex_);
  finished_.swap(taken);
}

std::shared_ptr<ServerOutbox> make_outbox() { return std::make_shared<ServerOutbox>(); }

std::shared_ptr<Outbox> as_outbox(const std::shared_ptr<ServerOutbox>& outbox) { return outbox; }

}  // namespace lane
