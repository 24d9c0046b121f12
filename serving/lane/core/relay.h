// Relay: a client's socket to grpcio's server, with the HTTP/2 connection over it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "channel.h"
#include "upstream.h"

namespace lane {

class Relay {
 public:
  // Connects to a Unix socket. Whatever becomes of that, it can be given calls.
  Relay(Epoll& epoll, Buffers& buffers, std::uint64_t key, const std::string& path,
        Downstream& downstream, std::function<void()> output, Seconds now);

  UpstreamConnection& upstream() { return upstream_; }
  // The socket is ready for something.
  void ready(std::uint32_t events);
  // Sends what there is; whether there may be more.
  bool flush(Seconds now);
  // Tries again, if it is not connected yet; when to come again.
  Seconds tick(Seconds now);
  bool lost() const { return lost_; }
  // Closes the socket, which would be ready for ever, and tells the client's side that it is
  // lost, if
  // that was not told. Who passes calls on may hold on to this until there is another.
  void end() {
    channel_.reset();
    upstream_.receive(nullptr, 0);
  }

 private:
  void connect();
  void read();

  Epoll& epoll_;
  Buffers& buffers_;
  const std::uint64_t key_;
  const std::string& path_;
  const Seconds made_;
  UpstreamConnection upstream_;
  std::optional<Channel> channel_;
  bool lost_ = false;
};

}  // namespace lane
