// Channel: a watched socket, with what it has not taken yet.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "clock.h"
#include "loop.h"
#include "wire.h"

namespace lane {

// Memory that all channels of a loop use in turn, so that an idle one has none.
struct Buffers {
  static constexpr std::size_t read_bytes = 256 * 1024;  // of one socket in a turn

  std::vector<std::uint8_t> input = std::vector<std::uint8_t>(read_bytes);
  std::string output;
};

class Channel {
 public:
  static constexpr std::size_t write_bytes = 256 * 1024;    // at once
  static constexpr int writes = 4;                          // in a turn: others want theirs, too
  static constexpr std::size_t unsent_bytes = 1024 * 1024;  // from which it is congested

  // Reads are watched for from the start. Throws std::system_error.
  Channel(Epoll& epoll, Buffers& buffers, std::uint64_t key, std::unique_ptr<Wire> wire);
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  // What Wire::read says, of the shared input buffer.
  ssize_t read();
  // The socket takes bytes again.
  void writable() { full_ = false; }
  // Moves what `source` wants to send, which it appends to a string as Connection::send does;
  // whether it may have more that the socket would take.
  template <class Source>
  bool send(Source& source, Seconds now) {
    borrow(now);
    bool more = true;
    for (int count = 0; more && count < writes; ++count) {
      gather(source);
      more = !unsent_.empty() && !full_ && write(now);
    }
    give_back();
    return more;
  }

  bool blocked() const { return !unsent_.empty(); }
  bool congested() const { return unsent_.size() >= unsent_bytes; }
  bool broken() const { return broken_; }
  // Whether the socket took something of the last send.
  bool took() const { return took_; }
  // When the socket last took something, or had nothing to take.
  Seconds progress() const { return progress_; }
  // Watch for what can be read, if that is wanted, and for room to write, where that is needed.
  void watch(bool reads);
  Wire& wire() { return *wire_; }

 private:
  template <class Source>
  void gather(Source& source) {
    const std::size_t most = full_ ? unsent_bytes : write_bytes;
    std::size_t before = unsent_.size();
    while (before < most) {
      source.send(unsent_, most - before);
      if (unsent_.size() == before) return;
      before = unsent_.size();
    }
  }
  bool write(Seconds now);
  void borrow(Seconds now);
  void give_back();

  Epoll& epoll_;
  Buffers& buffers_;
  const std::uint64_t key_;
  std::unique_ptr<Wire> wire_;
  std::uint32_t watched_;
  std::string unsent_;
  Seconds progress_ = 0;
  bool full_ = false;
  bool broken_ = false;
  bool took_ = false;
};

}  // namespace lane
