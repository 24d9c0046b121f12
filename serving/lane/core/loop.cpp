// Epoll and Agenda.
#include "loop.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <system_error>

namespace lane {

Epoll::Epoll() : epoll_(epoll_create1(EPOLL_CLOEXEC)) {
  if (!epoll_) throw std::system_error(errno, std::generic_category(), "epoll_create1");
}

void Epoll::add(int fd, std::uint64_t key, std::uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = key;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0)
    throw std::system_error(errno, std::generic_category(), "epoll_ctl");
}

void Epoll::change(int fd, std::uint64_t key, std::uint32_t events) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = key;
  epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event);
}

void Epoll::remove(int fd) { epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr); }

Epoll::Ready Epoll::wait(Seconds timeout) {
  // Rounded up, as what is due within the millisecond would have the loop turn until then.
  const Seconds longest = 3600;
  const int milliseconds =
      timeout == never
          ? -1
          : static_cast<int>(std::ceil(std::clamp(timeout, 0.0, longest) * 1e3));
  const int count =
      epoll_wait(epoll_.get(), events_.data(), static_cast<int>(events_.size()), milliseconds);
  return {events_.data(), events_.data() + std::max(count, 0)};
}

void Agenda::move(std::uint64_t key, Seconds from, Seconds to) {
  if (from == to) return;
  if (from == never) {
    times_.emplace(to, key);
    return;
  }
  auto node = times_.extract({from, key});
  if (node.empty() || to == never) return;
  node.value().first = to;
  times_.insert(std::move(node));
}

std::optional<std::uint64_t> Agenda::due(Seconds now) const {
  if (times_.empty() || times_.begin()->first > now) return std::nullopt;
  return times_.begin()->second;
}

}  // namespace lane
