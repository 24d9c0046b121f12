// What an event loop is made of: an epoll, and an agenda of who is to be looked at when.
#pragma once

#include <sys/epoll.h>

#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <utility>

#include "clock.h"
#include "descriptor.h"

namespace lane {

// The sockets that are watched, each by a key, level-triggered unless they say otherwise.
class Epoll {
 public:
  Epoll();  // throws std::system_error
  void add(int fd, std::uint64_t key, std::uint32_t events);  // throws std::system_error
  void change(int fd, std::uint64_t key, std::uint32_t events);
  void remove(int fd);

  struct Ready {
    const epoll_event* first;
    const epoll_event* last;
    const epoll_event* begin() const { return first; }
    const epoll_event* end() const { return last; }
  };
  // What is ready, after at most so many seconds; infinity waits until something is.
  Ready wait(Seconds timeout);

 private:
  Descriptor epoll_;
  std::array<epoll_event, 1024> events_;
};

constexpr Seconds never = std::numeric_limits<Seconds>::infinity();

// Who is to be looked at when: each key has one time at most.
class Agenda {
 public:
  // Moves the key from the one time to the other; `never` is no time.
  void move(std::uint64_t key, Seconds from, Seconds to);
  // The earliest time of all.
  Seconds next() const { return times_.empty() ? never : times_.begin()->first; }
  // The key whose time came first, if it has come; it keeps its time until it is moved.
  std::optional<std::uint64_t> due(Seconds now) const;

 private:
  std::set<std::pair<Seconds, std::uint64_t>> times_;
};

}  // namespace lane
